"""Evaluates recipes into memory that is already there: every checkpoint tensor is read once, in its own order.

``evaluate`` makes a box of the result and reads what that takes; of a transposed tensor that is all of its source
for every few rows. Here the target is cut instead, down through everything that only moves elements, until a piece
of a source meets the (strided) view of the target that it fills.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.evaluate import Region, TensorReader, evaluate, pieces, whole
from mm2c_runtime.weights.recipe import (
    ITEMSIZE,
    Cast,
    Concat,
    Interleave,
    Pad,
    Recipe,
    Slice,
    Source,
    Stack,
    Transpose,
)

Array = np.ndarray[Any, Any]
_MOVES = (Slice, Transpose, Stack, Concat, Interleave, Pad)


class DirectReader(TensorReader, Protocol):
    def read_into(self, key: str, start: int, out: Array) -> None:
        """Rows of a checkpoint tensor from ``start`` on into a C-contiguous array of its dtype."""
        ...


@dataclass(frozen=True)
class Piece:
    """``target`` is to hold the box ``region`` of ``recipe``."""

    recipe: Recipe
    region: Region
    target: Array

    def fill(self, reader: DirectReader) -> None:
        recipe, region, target = self.recipe, self.region, self.target
        rest = whole(recipe.shape)[1:]
        if isinstance(recipe, Source) and region[1:] == rest and target.flags.c_contiguous:
            reader.read_into(recipe.key, region[0][0], target)
        else:
            target[...] = evaluate(recipe, reader, region)


def fill(recipe: Recipe, reader: DirectReader, target: Array, limit: int = 16 << 20) -> None:
    """``target``, of the recipe's shape and dtype, gets its values; about ``limit`` bytes are held beside it."""
    for piece in split(recipe, target, limit):
        piece.fill(reader)


def split(
    recipe: Recipe, target: Array, limit: int = 16 << 20, region: Region | None = None
) -> Iterator[Piece]:
    """The pieces of about ``limit`` bytes that together fill ``target`` with the recipe, or its box ``region``; they
    may be filled in any order and at the same time. Padding is written at once."""
    region = whole(recipe.shape) if region is None else region
    inner = recipe.of if isinstance(recipe, Cast) else recipe
    if isinstance(inner, _MOVES):
        for part, box, view in _moved(inner, region, target):
            cast = Cast(part, recipe.to) if isinstance(recipe, Cast) and part.dtype != recipe.to else part
            yield from split(cast, view, limit, box)
        return
    shape = tuple(stop - start for start, stop in region)
    for box in pieces(shape, ITEMSIZE[recipe.dtype], limit):
        place = tuple(
            (first + start, first + stop) for (first, _), (start, stop) in zip(region, box, strict=True)
        )
        yield Piece(recipe, place, target[tuple(slice(*bounds) for bounds in box)])


def _moved(recipe: Recipe, region: Region, target: Array) -> Iterator[tuple[Recipe, Region, Array]]:
    """What a recipe moves: its parts, the box of each that is wanted, and where that goes."""
    if isinstance(recipe, Stack):
        for place, number in enumerate(range(*region[0])):
            yield recipe.parts[number], region[1:], target[place]
    elif isinstance(recipe, Transpose):
        inner: list[tuple[int, int]] = [(0, 0)] * len(region)
        for out_axis, in_axis in enumerate(recipe.perm):
            inner[in_axis] = region[out_axis]
        yield recipe.of, tuple(inner), target.transpose(np.argsort(recipe.perm))
    elif isinstance(recipe, Slice):
        start, stop = region[recipe.axis]
        yield recipe.of, _at(region, recipe.axis, start + recipe.start, stop + recipe.start), target
    elif isinstance(recipe, Concat):
        start, stop = region[recipe.axis]
        offset = 0
        for part in recipe.parts:
            low, high = max(start, offset), min(stop, offset + part.shape[recipe.axis])
            if low < high:
                box = _at(region, recipe.axis, low - offset, high - offset)
                yield part, box, target[_along(recipe.axis, low - start, high - start)]
            offset += part.shape[recipe.axis]
    elif isinstance(recipe, Interleave):
        start, stop = region[recipe.axis]
        half = recipe.shape[recipe.axis] // 2
        for parity in (0, 1):
            first, last = -(-(start - parity) // 2), -(-(stop - parity) // 2)
            if first < last:
                box = _at(region, recipe.axis, parity * half + first, parity * half + last)
                yield recipe.of, box, target[_along(recipe.axis, 2 * first + parity - start, None, 2)]
    elif isinstance(recipe, Pad):
        start, stop = region[recipe.axis]
        kept = min(stop, recipe.of.shape[recipe.axis])
        if start < kept:
            box = _at(region, recipe.axis, start, kept)
            yield recipe.of, box, target[_along(recipe.axis, 0, kept - start)]
        target[_along(recipe.axis, max(kept - start, 0), None)] = np.asarray(
            recipe.value, NUMPY[recipe.dtype]
        )
    else:
        raise TypeError(f"{type(recipe).__name__} moves nothing")


def _at(region: Region, axis: int, start: int, stop: int) -> Region:
    return (*region[:axis], (start, stop), *region[axis + 1 :])


def _along(axis: int, start: int, stop: int | None, step: int = 1) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, stop, step))
