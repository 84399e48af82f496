"""What a step of the cuda engine takes of a GPU besides weights and KV cache, by the shapes of its tensors.

A step's tensors come from one allocator and are given back as soon as they were read, so that its peak is at its
widest place. ``activations`` is the widest sum of tensors that live at once, ``workspace`` the largest scratch of a
plugin; their sum bounds the peak from above.
"""

from __future__ import annotations

from dataclasses import dataclass

from mm2c.config import Mapping, ModelConfig

BF16, F32, I32, I64 = 2, 4, 4, 8  # bytes
TILE_ROWS = 16  # pairs of a tile of the grouped experts, at least: the smallest BM of the kernels' tables
PERMUTE_CHUNK = 256  # pairs of a chunk when they are sorted by expert, at least
EXPERT_COLUMNS = 256  # counters of a chunk
SPLIT_TOKENS, SPLITS = 64, 4  # an FP8 linear sums this many parts in f32, up to so many tokens
DECODE_BLOCKS = (
    2 * 192
)  # blocks that decode attention spreads a step over: two a multiprocessor, of at most 192
SLICES = 9 * 256  # bytes: a workspace's slices begin at multiples of 256
MOST_SPLITS = 64  # of one row's positions


@dataclass(frozen=True)
class StepBytes:
    """Bytes on one rank: ``activations`` and ``workspace`` while the largest step runs, ``buffers`` always."""

    activations: int
    workspace: int
    buffers: int


def ceil_div(size: int, parts: int) -> int:
    return -(-size // parts)


def kv_heads_of(config: ModelConfig, mapping: Mapping) -> int:
    """KV heads of a rank; each rank keeps one where there are more ranks than heads."""
    return ceil_div(config.kv_heads, mapping.tp)


def cuda_step(
    config: ModelConfig, mapping: Mapping, *, context: int, rows: int, chunk: int, page: int
) -> StepBytes:
    """The largest step of an attention group: ``rows`` rows of one token, or ``chunk`` tokens of a prefill."""
    tokens = max(chunk, rows)
    return StepBytes(
        _activations(config, mapping, tokens, rows),
        SLICES
        + max(_attention_scratch(config, mapping, tokens, rows), _experts_scratch(config, mapping, tokens)),
        _buffers(config, context, tokens, rows, page),
    )


def _activations(config: ModelConfig, mapping: Mapping, tokens: int, rows: int) -> int:
    """The residual and its norm live all the time; beside them attention, experts or logits."""
    hidden = tokens * config.hidden * BF16
    q = config.q_width // mapping.tp
    kv = kv_heads_of(config, mapping) * config.head_dim
    attention = (
        tokens * ((q + 2 * kv) * BF16 + 2 * F32 + q * BF16) + hidden
    )  # q, k, v, their sums, out, o_proj
    gathered = mapping.attention_dp * tokens  # all groups' tokens pass through the experts
    experts = gathered * (config.experts * F32 + config.hidden * BF16)  # the router's logits, the result
    if mapping.attention_dp > 1:
        experts += (
            gathered * config.hidden * BF16 + hidden
        )  # tokens gathered before, own tokens scattered after
    head = rows * ceil_div(config.vocab, mapping.tp) * F32
    if mapping.tp > 1:
        head += 2 * rows * config.vocab * F32  # gathered by rank, then by row
    return 2 * hidden + max(attention, experts, head)


def _attention_scratch(config: ModelConfig, mapping: Mapping, tokens: int, rows: int) -> int:
    """Rotated queries; in a decode step also partial outputs of a row's splits, and a linear's parts."""
    heads = config.heads // mapping.tp
    width = heads * config.head_dim
    parts = min(ceil_div(DECODE_BLOCKS, kv_heads_of(config, mapping)) + rows, MOST_SPLITS * rows)
    attention = tokens * width * BF16 + parts * heads * (config.head_dim + 1) * F32
    widest = max(width + 2 * kv_heads_of(config, mapping) * config.head_dim, config.hidden)
    return max(attention, SPLITS * min(tokens, SPLIT_TOKENS) * widest * F32)


def _experts_scratch(config: ModelConfig, mapping: Mapping, tokens: int) -> int:
    """A (token, expert) pair has an intermediate row, a result row, and its places in the order by expert."""
    pairs = mapping.attention_dp * tokens * config.top_k
    inner = config.intermediate // mapping.moe_tp
    tiles = min(pairs, config.experts // mapping.ep) + pairs // TILE_ROWS
    return (
        pairs * ((inner + config.hidden) * BF16 + F32 + 2 * I32)
        + 3 * tiles * I32
        + ceil_div(pairs, PERMUTE_CHUNK) * EXPERT_COLUMNS * I32
    )


def _buffers(config: ModelConfig, context: int, tokens: int, rows: int, page: int) -> int:
    """Ids, lengths and block tables of a step, its logits, and what sampling reads: numbers and a mask a row."""
    inputs = tokens * I64 + (rows + 1) * 3 * I32
    tables = (rows + 1) * ceil_div(context, page) * I32
    sampling = rows * (24 + ceil_div(config.vocab, 32) * I32)
    return inputs + tables + rows * config.vocab * F32 + sampling
