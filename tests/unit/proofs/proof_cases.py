"""Ranks' recipes of small models in every layout and lowering, as a build makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx_ir as ir
from hand_graph import fp8_everywhere, hand_graph, model_config

from mm2c.checkpoint.convert import converted
from mm2c.config import Mapping, ModelConfig, WeightFormats
from mm2c.lower.cuda import lower_cuda
from mm2c.lower.cut import cut
from mm2c.lower.onnxruntime import LOWERINGS
from mm2c.passes.shard import shard
from mm2c.proofs.prove import Proof, prove
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.recipe import Recipe

Files = list[dict[str, Recipe]]  # a weight file's recipes of each rank

# widths of which tp 8 leaves 192 of 1536, as the released model's; vocabularies that tp divides or does not
CONFIG = model_config(hidden=128, heads=8, kv_heads=4, head_dim=128, intermediate=1536, experts=8, vocab=97)
LOWER: dict[str, Callable[[RankGraph], Any]] = {
    "graph": lambda own: own,
    "portable": lambda own: cut(LOWERINGS["portable"](own)),
    "fast": lambda own: cut(LOWERINGS["fast"](own)),
    "cuda": lambda own: lower_cuda(own, ir.DataType.BFLOAT16),
}
LAYOUTS = [
    Mapping(), Mapping(2), Mapping(4), Mapping(8), Mapping(2, 2), Mapping(4, 2), Mapping(4, 4), Mapping(8, 2),
    Mapping(8, 8), Mapping(1, 2, 2), Mapping(1, 4, 4), Mapping(2, 4, 2), Mapping(4, 8, 2), Mapping(2, 1, 3),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    config: ModelConfig
    mapping: Mapping
    full: dict[str, Recipe]
    ranks: Files

    def prove(self, ranks: Files | None = None) -> Proof:
        return prove(self.ranks if ranks is None else ranks, self.full, self.config, self.mapping)


def formats_of(config: ModelConfig, stored: str) -> WeightFormats:
    """``stored``: "fp8", "bf16", or "mixed" with dense attention."""
    everywhere = fp8_everywhere(config)
    if stored == "mixed":
        return WeightFormats(frozenset(name for name in everywhere.fp8 if name.endswith("experts")))
    return everywhere if stored == "fp8" else WeightFormats()


def make_case(
    mapping: Mapping, lowering: str, stored: str = "fp8", target: Any = "stored", config: ModelConfig = CONFIG
) -> Case:
    """``target``: what a build turns the weights into; the graph is written for that."""
    formats = formats_of(config, stored)
    after = {"stored": formats, "fp8": fp8_everywhere(config), "bf16": WeightFormats()}[target]
    whole = hand_graph(config, after)
    if target != "stored":
        whole.recipes, _ = converted(hand_graph(config, formats).recipes, formats, target, config)
    owns = [shard(whole, config, mapping.at(rank)) for rank in range(mapping.ranks)]
    return Case(config, mapping, whole.recipes, [dict(LOWER[lowering](own).recipes) for own in owns])


@cache
def case(mapping: Mapping, lowering: str = "graph", stored: str = "fp8") -> Case:
    """A case that several tests read."""
    return make_case(mapping, lowering, stored)
