"""All ranks together: that their boxes tile the checkpoint, and what was counted on the way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mm2c.config import Mapping as RankMapping
from mm2c.config import ModelConfig
from mm2c.proofs.failure import ProofError
from mm2c.proofs.ownership import (
    ATTENTION,
    EXPERTS,
    OUTSIDE,
    TABLES,
    VECTORS,
    Ownership,
    key_of,
    names_of,
    part_of,
)
from mm2c.proofs.pieces import Box
from mm2c.proofs.rank_layer import Held, LayerProof
from mm2c.proofs.scale_blocks import SCALE_SUFFIX
from mm2c.proofs.tiles import fault
from mm2c_runtime.weights.recipe import Computed, Concat, Dequantize, Recipe, Source, Stack

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
# roles whose boxes are the same range of heads or of an expert's width: (role, axis) of each
_ALIGNED = (
    ((ATTENTION[0], 0), (VECTORS[2], 0), (ATTENTION[3], 1)),
    ((ATTENTION[1], 0), (VECTORS[3], 0), (ATTENTION[2], 0)),
    ((EXPERTS[0], 1), (EXPERTS[1], 1), (EXPERTS[2], 2)),
    ((EXPERTS[0], 0), (EXPERTS[1], 0), (EXPERTS[2], 0)),
)


@dataclass
class Proof:
    """What was proved of one kind of weight file, one file a rank.

    ``tensors`` of all files, ``pieces`` of checkpoint tensors in them (``moved`` as bytes, the others ``converted``),
    ``bytes`` of all files' tensors, ``sources`` of the checkpoint that are used. ``classes``: by role of a tensor, into
    how many parts the ranks cut it and how many ranks hold each part. ``blocks``: sides of the scale blocks.
    """

    ranks: int
    layers: int
    tensors: int = 0
    moved: int = 0
    converted: int = 0
    bytes: int = 0
    sources: int = 0
    classes: dict[str, tuple[int, int]] = field(default_factory=dict)
    blocks: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def pieces(self) -> int:
        return self.moved + self.converted

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "pieces": self.pieces,
            "classes": {
                name: {"parts": parts, "copies": copies} for name, (parts, copies) in self.classes.items()
            },
            "blocks": {name: list(sides) for name, sides in self.blocks.items()},
        }


def prove(
    by_rank: Sequence[Mapping[str, Recipe]],
    full: Mapping[str, Recipe],
    config: ModelConfig,
    mapping: RankMapping,
) -> Proof:
    """That the ranks' tensors are the checkpoint, cut as ``mapping`` says.

    ``by_rank``: the recipes of one weight file of each rank of a replica. ``full``: those of the uncut model.

    Raises:
        ProofError: with the tensor's name, the rank, and the entries that are missing, doubled or misplaced.
    """
    if len(by_rank) != mapping.ranks:
        raise ProofError(f"{len(by_rank)} ranks have weights, the layout has {mapping.ranks}")
    tables: dict[str, Computed] = {
        recipe.kind: recipe for recipe in full.values() if isinstance(recipe, Computed)
    }
    if set(tables) != set(TABLES):
        raise ProofError("the model has no rope tables")
    positions = tables[TABLES[0]].shape[0]
    owners = [Ownership(config, mapping.at(rank), positions) for rank in range(mapping.ranks)]
    layers = [_by_layer(recipes, rank, config) for rank, recipes in enumerate(by_rank)]
    proof = Proof(mapping.ranks, config.layers, sources=_check_sources(full))
    for layer in (OUTSIDE, *range(config.layers)):
        roles = [*EXPERTS, *(name + SCALE_SUFFIX for name in EXPERTS)]
        keys = {
            role: [key_of(layer, role, expert) for expert in range(config.experts)] for role in roles
        } if layer != OUTSIDE else {}  # fmt: skip
        held = [
            LayerProof(own, layer, keys, tables).prove(tensors.get(layer, {}))
            for own, tensors in zip(owners, layers, strict=True)
        ]
        _check_ranks(layer, held, owners, proof)
        _count(held, proof)
    return proof


def _by_layer(recipes: Mapping[str, Recipe], rank: int, config: ModelConfig) -> dict[int, dict[str, Recipe]]:
    found: dict[int, dict[str, Recipe]] = {}
    for name, recipe in recipes.items():
        match = _LAYER.match(name)
        layer = int(match[1]) if match else OUTSIDE
        if layer >= config.layers:
            raise ProofError(f"{name}: the model has {config.layers} layers", where=f"rank {rank}")
        found.setdefault(layer, {})[name] = recipe
    return found


def _check_ranks(layer: int, held: Sequence[Held], owners: Sequence[Ownership], proof: Proof) -> None:
    """The ranks' boxes of each role tile its tensor, each part on as many ranks as every other."""
    for name in names_of(layer):
        copies = Counter(h.boxes[name] for h in held)
        shape: tuple[int, ...] = owners[0].shape(name)
        if name in EXPERTS:
            shape = (owners[0].config.experts, *shape)
        whole: Box = tuple((0, size) for size in shape)
        wrong = fault(list(copies), whole)
        title = key_of(layer, name) if name not in EXPERTS else f"{key_of(layer, 'experts.*')}.{name}"
        if wrong:
            raise ProofError(f"{title}: {wrong} on the ranks together")
        if len(set(copies.values())) != 1:
            raise ProofError(
                f"{title}: some parts are on {min(copies.values())} ranks, some on {max(copies.values())}"
            )
        entry = len(copies), next(iter(copies.values()))
        if proof.classes.setdefault(name, entry) != entry:
            raise ProofError(f"{title} is cut otherwise than in other layers")
    if layer == OUTSIDE:
        return
    for rank, own in enumerate(held):
        for alike in _ALIGNED:
            (first, axis), *others = alike
            for other, at in others:
                if own.boxes[first][axis] != own.boxes[other][at]:
                    raise ProofError(
                        f"{key_of(layer, other)}: entries {own.boxes[other][at]} are beside entries "
                        f"{own.boxes[first][axis]} of {first}",
                        where=f"rank {rank}",
                    )


def _count(held: Iterable[Held], proof: Proof) -> None:
    for one in held:
        proof.tensors += one.tensors
        proof.moved += one.moved
        proof.converted += one.converted
        proof.bytes += one.bytes
        proof.blocks |= one.sides


def _check_sources(full: Mapping[str, Recipe]) -> int:
    """How many checkpoint tensors the model is made of: each has a role, so that a rank must hold it."""
    keys = {key for recipe in full.values() for key in sources_of(recipe)}
    for key in keys:
        part = part_of(key)
        if part.weight not in names_of(part.layer):
            raise ProofError(f"{key}: the model has no such tensor")
    return len(keys)


def sources_of(recipe: Recipe) -> Iterable[str]:
    """Keys of the checkpoint tensors that a recipe names."""
    if isinstance(recipe, Source):
        yield recipe.key
    elif isinstance(recipe, (Concat, Stack)):
        for part in recipe.parts:
            yield from sources_of(part)
    elif isinstance(recipe, Dequantize):
        yield from sources_of(recipe.weight)
        yield from sources_of(recipe.scale)
    elif not isinstance(recipe, Computed):
        yield from sources_of(recipe.of)
