"""What a rank holds: weights to the byte, KV cache per token and in tokens, and an estimate of a step's
activations.

Everything follows from the configuration, how the weights are stored, and the cut; nothing is measured.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

from mm2c.checkpoint.names import (
    EMBED,
    HEAD,
    NORM,
    attention_linears,
    experts_module,
    layer_vectors,
)
from mm2c.config import BLOCK, Engine, KvDtype, Mapping, ModelConfig, WeightFormats
from mm2c.plan.scratch import rtx_step
from mm2c.plan.step import ceil_div, cuda_step, kv_heads_of
from mm2c_runtime.weights.recipe import ITEMSIZE

# "fp8": as stored; "bf16" converts the linears, "f32" everything; "cuda": as the files for GPUs have them
WeightDtype = Literal["fp8", "bf16", "f32", "cuda"]
KV_ITEMSIZE: dict[str, int] = {"f32": 4, "bf16": 2, "fp8": 1}


@dataclass(frozen=True)
class Weights:
    """Bytes of a rank's weights by part. ``router``: gates and correction biases."""

    embedding: int
    head: int
    attention: int
    experts: int
    router: int
    norms: int
    rope: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank, all there before the first token. ``kv_per_token``: of all layers, K and V, of this rank's
    heads; ``activations``: the tensors of the largest step; ``workspace``: what its kernels write besides;
    ``buffers``: what lies there between steps (inputs, block tables, logits)."""

    rank: int
    weights: Weights
    kv_per_token: int
    activations: int
    workspace: int = 0
    buffers: int = 0

    @property
    def step(self) -> int:
        """Bytes that the largest step takes and gives back."""
        return self.activations + self.workspace

    @property
    def fixed(self) -> int:
        """Bytes beside the KV cache."""
        return self.weights.total + self.step + self.buffers

    def total(self, tokens: int) -> int:
        """Bytes with ``tokens`` tokens in the cache."""
        return self.fixed + tokens * self.kv_per_token

    def kv_capacity(self, available: int) -> int:
        """Tokens that fit beside everything else into ``available`` bytes; 0 where that alone does not."""
        return max(0, available - self.fixed) // self.kv_per_token


@dataclass(frozen=True)
class MemoryPlan:
    """One replica's ranks, and the cache that was asked for: ``tokens`` = rows * context of each attention group.
    ``tp``: ranks of a group, which hold the same tokens; ``dp``: groups in all, over all replicas."""

    ranks: tuple[RankMemory, ...]
    tokens: int
    tp: int = 1
    dp: int = 1

    @property
    def replicas(self) -> int:
        return self.dp * self.tp // len(self.ranks)

    @property
    def per_rank(self) -> int:
        """Bytes of the fullest rank, its group's rows full."""
        return max(rank.total(self.tokens) for rank in self.ranks)

    @property
    def total(self) -> int:
        """Bytes of all ranks of all replicas, every row full."""
        return self.replicas * sum(rank.total(self.tokens) for rank in self.ranks)

    @property
    def kv_per_token(self) -> int:
        """Bytes that a token takes on all ranks that hold it: those of one attention group."""
        return sum(rank.kv_per_token for rank in self.ranks[: self.tp])

    def kv_capacity_tokens(self, available: int) -> int:
        """Tokens that all groups of all replicas can hold with ``available`` bytes for each rank."""
        return self.dp * min(rank.kv_capacity(available) for rank in self.ranks)


def plan_memory(
    config: ModelConfig,
    formats: WeightFormats,
    mapping: Mapping,
    *,
    context: int = 0,
    rows: int = 1,
    chunk: int = 512,
    weight_dtype: WeightDtype = "fp8",
    kv_dtype: KvDtype = "bf16",
    activation_dtype: Literal["bf16", "f32"] = "bf16",
    attention_scores: bool = False,
    page: int = 1,
    engine: Engine = "cuda",
) -> MemoryPlan:
    """The plan of every rank of one replica of ``mapping`` (its own ``rank`` does not matter).

    ``context``: tokens a row can hold (0: the model's); ``rows``: rows of an attention group decoded together;
    ``chunk``: tokens of a prefill step; ``weight_dtype`` "cuda" plans the steps of ``engine`` on a GPU, else ONNX
    Runtime's; ``attention_scores``: the engine keeps a step's score matrix in memory (ONNX Runtime does); ``page``:
    tokens of a page, of which a row takes whole ones.
    """
    context = context or config.context
    kv = 2 * config.layers * kv_heads_of(config, mapping) * config.head_dim * KV_ITEMSIZE[kv_dtype]
    weights = _weights(config, formats, mapping, weight_dtype, context)
    if weight_dtype == "cuda":
        most = (
            rtx_step(config, mapping, context=context, rows=rows, chunk=chunk)
            if engine == "tensorrt-rtx"
            else cuda_step(config, mapping, context=context, rows=rows, chunk=chunk, page=page)
        )
        step = (most.activations, most.workspace, most.buffers)
    else:
        size = ITEMSIZE[activation_dtype]
        step = (_activations(config, mapping, context, rows, chunk, size, attention_scores), 0, 0)
    ranks = tuple(RankMemory(rank, weights, kv, *step) for rank in range(mapping.ranks))
    return MemoryPlan(ranks, rows * ceil_div(context, page) * page, mapping.tp, mapping.dp)


def _blocks(size: int, whole: int) -> int:
    """Scale blocks along an axis of which a rank has ``size`` of ``whole``: a cut through blocks halves them
    until none is cut."""
    block = BLOCK if size == whole or size % BLOCK == 0 else math.gcd(BLOCK, size)
    return ceil_div(size, block)


def _weights(
    config: ModelConfig, formats: WeightFormats, mapping: Mapping, target: WeightDtype, context: int
) -> Weights:
    stored = dict(formats.dtypes)

    def dense(name: str) -> int:
        kind = stored.get(name, "bf16")
        if target == "cuda":
            whole = name.endswith("bias") or (name.endswith("gate.weight") and kind != "bf16")
            return 4 if whole else 2
        return 4 if target == "f32" else ITEMSIZE[kind]

    def linear(name: str, module: str, n: tuple[int, int], k: tuple[int, int], count: int = 1) -> int:
        """``n`` and ``k``: the rank's size of an axis, and the whole."""
        elements = n[0] * k[0] * count
        if formats.of(module) == "dense":
            return elements * (2 if target == "bf16" else dense(name))
        if target in ("fp8", "cuda"):
            return elements + 4 * _blocks(*n) * _blocks(*k) * count
        return elements * ITEMSIZE[target]

    vocabulary = ceil_div(config.vocab, mapping.tp) * config.hidden
    attention = experts = router = norms = 0
    q, kv = config.q_width // mapping.tp, kv_heads_of(config, mapping) * config.head_dim
    own = {"q_proj": (q, config.q_width), "k_proj": (kv, config.kv_width), "v_proj": (kv, config.kv_width)}
    inner = (config.intermediate // mapping.moe_tp, config.intermediate)
    hidden = (config.hidden, config.hidden)
    for layer in range(config.layers):
        for item in attention_linears(config, layer):
            name = item.module.rpartition(".")[2]
            n, k = (own[name], hidden) if name in own else (hidden, own["q_proj"])
            attention += linear(item.weight, item.module, n, k)
        module, mine = experts_module(layer), config.experts // mapping.ep
        experts += linear(f"{module}.gate_up_proj", module, inner, hidden, 2 * mine)
        experts += linear(f"{module}.down_proj", module, hidden, inner, mine)
        for name, _, shape in layer_vectors(config, layer):
            size = {"q_norm": q, "k_norm": kv}.get(name.split(".")[-2], math.prod(shape)) * dense(name)
            if ".mlp." in name:
                router += size
            else:
                norms += size
    return Weights(
        embedding=vocabulary * dense(EMBED),
        head=vocabulary * dense(HEAD),
        attention=attention,
        experts=experts,
        router=router,
        norms=norms + config.hidden * dense(NORM),
        rope=context * config.rope.rotary_dim * 4,  # cos and sin, f32, half of rotary_dim each
    )


def _activations(
    config: ModelConfig, mapping: Mapping, context: int, rows: int, chunk: int, itemsize: int, scores: bool
) -> int:
    """ONNX Runtime's step: residual and its norm, beside the largest of attention, experts and logits."""
    tokens = max(chunk, rows)
    heads = ceil_div(config.heads, mapping.tp)
    q, kv = heads * config.head_dim, kv_heads_of(config, mapping) * config.head_dim
    residual = 3 * tokens * config.hidden * itemsize
    attention = tokens * (3 * q + 4 * kv) * itemsize  # q, k, v before and after the rotation, and the output
    if scores:
        attention += heads * tokens * context * 4
    inner = config.intermediate // mapping.moe_tp
    gathered = mapping.attention_dp * tokens  # all groups' tokens pass through the experts
    experts = gathered * (config.top_k * (3 * inner * itemsize + 8) + config.hidden * 4)
    if mapping.attention_dp > 1:
        experts += 2 * gathered * config.hidden * itemsize
    logits = rows * ceil_div(config.vocab, mapping.tp) * 4 * (2 if mapping.tp > 1 else 1)
    return residual + max(attention, experts, logits)
