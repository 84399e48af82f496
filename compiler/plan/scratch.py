"""What a step of a TensorRT-RTX plan takes of a GPU: without plugins its experts, and its caches, are copied.

The builder's own figure is known once a plan is built (``scratch`` in the manifest; `mm2c inspect --engine` shows it).
This is an estimate by shapes, fitted to what the builder of TensorRT-RTX 1.7 says of two layers of M2.7 at true sizes:
tp 4 and 8, contexts of 8 K to 128 K, decode steps of 1 to 64 rows and prefill steps of 64 to 2048 tokens. There it is
between 1 % below and 21 % above.
"""

from __future__ import annotations

from mm2c.config import Mapping, ModelConfig
from mm2c.plan.step import BF16, F32, I32, I64, StepBytes, ceil_div, kv_heads_of

GATHERED_TOKENS = 16  # a step of so many rows gathers its tokens' experts, a larger one runs all of them
FIXED = 24 << 20  # beside what grows with anything


def rtx_step(config: ModelConfig, mapping: Mapping, *, context: int, rows: int, chunk: int) -> StepBytes:
    """The largest step: ``rows`` of one token each, or a prefill of ``chunk`` tokens of one row. Plans run one after
    another and share their scratch memory, which captured steps use too."""
    few = min(rows, GATHERED_TOKENS)
    steps = [
        gathered_scratch(config, mapping, context, few),
        dense_scratch(config, mapping, context, 1, chunk),
    ]
    if rows > few:
        steps.append(dense_scratch(config, mapping, context, rows, rows))
    tokens = max(chunk, rows)
    between = (
        2 * 2 * tokens * config.hidden * BF16
    )  # two states between stages, of this stage and the one before
    inputs = tokens * I64 + 2 * rows * I32
    logits = rows * config.vocab * F32 + rows * (24 + ceil_div(config.vocab, 32) * I32)
    return StepBytes(activations=0, workspace=max(steps), buffers=between + inputs + logits)


def gathered_scratch(config: ModelConfig, mapping: Mapping, context: int, rows: int) -> int:
    """Of a decode step of few rows: the weights of each row's experts in bf16."""
    inner = config.intermediate // mapping.moe_tp
    gathered = rows * config.top_k * 3 * inner * config.hidden * BF16
    scores = rows * _heads(config, mapping) * context * F32
    caches = rows * _cache_of_layer(config, mapping, context)
    return max(gathered, caches + scores) + _beside(config, mapping, rows)


def dense_scratch(config: ModelConfig, mapping: Mapping, context: int, rows: int, tokens: int) -> int:
    """Of a step of ``tokens`` in all: every expert in bf16, and of every expert a result for every token."""
    own, inner = config.experts // mapping.ep, config.intermediate // mapping.moe_tp
    down = own * inner * config.hidden * BF16
    weights = 3 * down
    results = tokens * own * config.hidden * BF16
    experts = weights + 2 * down + 4 * results // 3
    attention = 2 * weights + rows * _cache_of_layer(config, mapping, context)
    attention += tokens * _heads(config, mapping) * context * BF16
    return max(experts, attention) + _beside(config, mapping, rows)


def _cache_of_layer(config: ModelConfig, mapping: Mapping, context: int) -> int:
    """Keys and values of a whole row: a step reads them as a copy."""
    return 2 * kv_heads_of(config, mapping) * context * config.head_dim * BF16


def _heads(config: ModelConfig, mapping: Mapping) -> int:
    return ceil_div(config.heads, mapping.tp)


def _beside(config: ModelConfig, mapping: Mapping, rows: int) -> int:
    """The attention's weights in bf16, and logits."""
    q, kv = config.q_width // mapping.tp, kv_heads_of(config, mapping) * config.head_dim
    linears = (2 * q + 2 * kv) * config.hidden * BF16
    return linears + rows * ceil_div(config.vocab, mapping.tp) * F32 + FIXED
