"""Which box of every checkpoint tensor each rank must hold: the layouts' definition, from the configuration alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from math import gcd

from mm2c.config import BLOCK, Mapping, ModelConfig
from mm2c.proofs.pieces import Box
from mm2c.proofs.scale_blocks import SCALE_SUFFIX

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"block_sparse_moe\.experts\.(\d+)\.(w[123]\.weight(?:_scale_inv)?)")
OUTSIDE = -1  # "layer" of the embedding, the head, the last norm and the rope tables

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
TABLES = ("rope_cos", "rope_sin")
ATTENTION = tuple(f"self_attn.{name}_proj.weight" for name in "qkvo")
EXPERTS = ("w1.weight", "w3.weight", "w2.weight")  # gate, up, down
VECTORS = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    "block_sparse_moe.gate.weight",
    "block_sparse_moe.e_score_correction_bias",
)


@dataclass(frozen=True)
class Part:
    """A checkpoint tensor by its role: ``name`` within its layer, or within one expert of it."""

    layer: int
    name: str
    expert: int = -1

    @property
    def is_scale(self) -> bool:
        return self.name.endswith(SCALE_SUFFIX)

    @property
    def weight(self) -> str:
        return self.name.removesuffix(SCALE_SUFFIX)


def part_of(key: str) -> Part:
    """The role of a checkpoint tensor, or of a rope table."""
    found = _LAYER.fullmatch(key)
    if found is None:
        return Part(OUTSIDE, key)
    layer, rest = int(found[1]), found[2]
    expert = _EXPERT.fullmatch(rest)
    return Part(layer, rest) if expert is None else Part(layer, expert[2], int(expert[1]))


def key_of(layer: int, name: str, expert: int = -1) -> str:
    """Inverse of ``part_of``."""
    if layer == OUTSIDE:
        return name
    inner = name if expert < 0 else f"block_sparse_moe.experts.{expert}.{name}"
    return f"model.layers.{layer}.{inner}"


def names_of(layer: int) -> tuple[str, ...]:
    """Every role within a layer but scales."""
    return (EMBED, NORM, HEAD, *TABLES) if layer == OUTSIDE else (*VECTORS, *ATTENTION, *EXPERTS)


@dataclass(frozen=True)
class Ownership:
    """What one rank holds of each tensor."""

    config: ModelConfig
    mapping: Mapping
    positions: int  # rows of the rope tables

    @cached_property
    def experts(self) -> tuple[int, int]:
        count = self.config.experts // self.mapping.ep
        first = self.mapping.rank // self.mapping.moe_tp * count
        return first, first + count

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole checkpoint tensor."""
        c = self.config
        if name.endswith(SCALE_SUFFIX):
            return tuple(-(-size // BLOCK) for size in self.shape(name.removesuffix(SCALE_SUFFIX)))
        tables = (self.positions, c.rope.rotary_dim // 2)
        shapes: dict[str, tuple[int, ...]] = {
            EMBED: (c.vocab, c.hidden), HEAD: (c.vocab, c.hidden), NORM: (c.hidden,),
            TABLES[0]: tables, TABLES[1]: tables,
            VECTORS[0]: (c.hidden,), VECTORS[1]: (c.hidden,), VECTORS[2]: (c.q_width,), VECTORS[3]: (c.kv_width,),
            VECTORS[4]: (c.experts, c.hidden), VECTORS[5]: (c.experts,),
            ATTENTION[0]: (c.q_width, c.hidden), ATTENTION[1]: (c.kv_width, c.hidden),
            ATTENTION[2]: (c.kv_width, c.hidden), ATTENTION[3]: (c.hidden, c.q_width),
            EXPERTS[0]: (c.intermediate, c.hidden), EXPERTS[1]: (c.intermediate, c.hidden),
            EXPERTS[2]: (c.hidden, c.intermediate),
        }  # fmt: skip
        return shapes[name]

    def box(self, name: str) -> Box:
        """Of that tensor; of the experts' tensors, in each expert that the rank holds."""
        if name.endswith(SCALE_SUFFIX):
            own = self.box(name.removesuffix(SCALE_SUFFIX))
            return tuple((start // BLOCK, -(-stop // BLOCK)) for start, stop in own)
        whole = [(0, size) for size in self.shape(name)]
        cut = self._cut(name)
        if cut is not None:
            axis, start, stop = cut
            whole[axis] = (start, stop)
        return tuple(whole)

    def side(self, name: str, axis: int) -> int:
        """Of the blocks that share a scale, along one axis of the rank's part of a weight: where the stored blocks do
        not fit the part, the largest that divide both."""
        start, stop = self.box(name)[axis]
        return BLOCK if stop - start == self.shape(name)[axis] else gcd(BLOCK, stop - start)

    def _cut(self, name: str) -> tuple[int, int, int] | None:
        """(axis, start, stop) of what is not held whole."""
        c, m = self.config, self.mapping
        t = m.rank % m.tp
        if name in (EMBED, HEAD):
            rows = -(-c.vocab // m.tp)
            return 0, t * rows, min((t + 1) * rows, c.vocab)
        heads = c.heads // m.tp * c.head_dim
        if name in (ATTENTION[0], VECTORS[2]):
            return 0, t * heads, (t + 1) * heads
        if name == ATTENTION[3]:
            return 1, t * heads, (t + 1) * heads
        if name in (ATTENTION[1], ATTENTION[2], VECTORS[3]):
            first, last = t * c.kv_heads // m.tp, ((t + 1) * c.kv_heads - 1) // m.tp
            return 0, first * c.head_dim, (last + 1) * c.head_dim
        if name in EXPERTS:
            width = c.intermediate // m.moe_tp
            start = m.rank % m.moe_tp * width
            return (1 if name == EXPERTS[2] else 0), start, start + width
        return None
