"""In which pieces the weights are written: units of work, each with the parts of the checkpoint that it wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mm2c.weights.layout import FileLayout, WeightJob
from mm2c.weights.needs import needed_rows, sources
from mm2c.weights.shards import Stored
from mm2c.weights.sources import Block, blocks_of
from mm2c_runtime.weights.evaluate import Region, whole
from mm2c_runtime.weights.recipe import ITEMSIZE, Computed, Recipe

PIECE = 2 << 20  # bytes of a piece, about
SMALL = 64 << 10  # bytes: smaller experts are taken together
TALL = 64 << 20  # bytes of the checkpoint that one piece may want
TALL_PIECE = 32 << 20  # bytes of a piece that wants more: fewer pieces, fewer readings
_ROWS = 128  # pieces end at whole scale blocks where they can

Group = Sequence[tuple[int, str]]
Wanted = Callable[[int, int, int], bool]


@dataclass(frozen=True)
class Piece:
    """``region`` of a tensor, ``nbytes`` that lie at ``offset`` of the file of job ``job``."""

    job: int
    recipe: Recipe
    region: Region
    offset: int
    nbytes: int


@dataclass
class Unit:
    """Pieces that one thread makes, of ``blocks`` of the checkpoint. ``tall``: bytes of it that they want where that
    is more than can be kept: they read it in parts, and not of ``blocks``."""

    pieces: list[Piece]
    blocks: list[Block] = field(default_factory=list)
    tall: int = 0


class Plan:
    """The units of all groups in order. ``wanted(job, offset, nbytes)`` says which bytes have to be written."""

    def __init__(
        self,
        jobs: Sequence[WeightJob],
        layouts: Sequence[FileLayout],
        order: Sequence[Group],
        tensors: Mapping[str, Stored],
        wanted: Wanted,
    ) -> None:
        self._jobs, self._layouts, self._order = jobs, layouts, order
        self._tensors, self._wanted = tensors, wanted
        self._last: dict[str, int] = {}  # key -> the last group that wants it
        for number, group in enumerate(order):
            for job, name in group:
                for source in sources(jobs[job].recipes[name]):
                    self._last[source.key] = number

    def groups(self) -> Iterator[tuple[int, list[Unit]]]:
        for number, group in enumerate(self._order):
            yield number, self._units(group)

    def wanted_later(self, unit: Unit, group: int) -> set[str]:
        """Which of the unit's tensors groups behind ``group`` want as well."""
        return {key for key, _ in unit.blocks if self._last[key] > group}

    def _units(self, group: Group) -> list[Unit]:
        """Pieces by the place of the first block that they want, so that all users of a block come together."""
        places: dict[object, int] = {}
        by_place: dict[int, Unit] = {}
        blocks: dict[int, dict[Block, None]] = {}
        tall: list[Unit] = []
        for job, name in group:
            recipe, entry = self._jobs[job].recipes[name], self._layouts[job].entries[name]
            is_tall = self._wants(recipe) > TALL
            for piece in _pieces(job, recipe, entry.offset, TALL_PIECE if is_tall else PIECE):
                if is_tall and (wants := self._wants(recipe, piece.region)) > TALL:
                    if self._wanted(job, piece.offset, piece.nbytes):
                        tall.append(Unit([piece], tall=wants))
                    continue
                own = blocks_of(needed_rows(recipe, piece.region), self._tensors)
                marks: list[object] = [*own] or [(_computed(recipe), piece.region)]
                place = min(places.setdefault(mark, len(places)) for mark in marks)
                if self._wanted(job, piece.offset, piece.nbytes):
                    by_place.setdefault(place, Unit([])).pieces.append(piece)
                    blocks.setdefault(place, {}).update(dict.fromkeys(own))
        for place, unit in by_place.items():
            unit.blocks = [*blocks[place]]
        return [by_place[place] for place in sorted(by_place)] + tall

    def _wants(self, recipe: Recipe, region: Region | None = None) -> int:
        """Bytes of the checkpoint behind the first piece of a recipe, or behind ``region``."""
        if region is None:
            boxes = _boxes(recipe.shape, ITEMSIZE[recipe.dtype], PIECE)
            region = next(boxes, whole(recipe.shape))
        return sum(
            (stop - start) * (self._tensors[key].nbytes // max(self._tensors[key].shape[0], 1))
            for key, (start, stop) in needed_rows(recipe, region).items()
        )


def _computed(recipe: Recipe) -> str:
    return recipe.kind if isinstance(recipe, Computed) else ""


def _pieces(job: int, recipe: Recipe, offset: int, limit: int) -> Iterator[Piece]:
    itemsize = ITEMSIZE[recipe.dtype]
    for region in _boxes(recipe.shape, itemsize, limit):
        size = math.prod(stop - start for start, stop in region) * itemsize
        yield Piece(job, recipe, region, offset, size)
        offset += size


def _boxes(shape: tuple[int, ...], itemsize: int, limit: int) -> Iterator[Region]:
    """Boxes that tile ``shape`` in row-major order, none much over ``limit`` bytes unless one row already is."""
    row = math.prod(shape[1:]) * itemsize
    if len(shape) > 2:  # experts one by one, so that all ranks are at the same one; small ones together
        limit = min(limit, max(SMALL, row))
    if row > limit and len(shape) > 1:
        for index in range(shape[0]):
            for inner in _boxes(shape[1:], itemsize, limit):
                yield ((index, index + 1), *inner)
        return
    step = max(1, limit // max(row, 1))
    step -= step % _ROWS if step > _ROWS else 0
    for start in range(0, shape[0], step):
        yield ((start, min(start + step, shape[0])), *whole(shape[1:]))
