"""Evaluates a recipe, or a box of its result, reading no more of the checkpoint than the box needs.

A region is one (start, stop) per axis of a recipe's result; it is pushed down through the expression to the
sources, so slices cost nothing and a stack of experts is read expert by expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from mm2c_runtime.weights import rope
from mm2c_runtime.weights.dtypes import NUMPY, widen
from mm2c_runtime.weights.recipe import (
    ITEMSIZE,
    Cast,
    Computed,
    Concat,
    Dequantize,
    Interleave,
    Pad,
    Quantize,
    QuantizeScale,
    Recipe,
    Repeat,
    Slice,
    Source,
    Stack,
    Transpose,
)

E4M3_MAX = 448.0
Array = np.ndarray[Any, Any]
Region = tuple[tuple[int, int], ...]


class TensorReader(Protocol):
    def read_rows(self, key: str, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` along the first axis of a checkpoint tensor, in its stored dtype."""
        ...


def whole(shape: tuple[int, ...]) -> Region:
    return tuple((0, size) for size in shape)


def nbytes(recipe: Recipe) -> int:
    return math.prod(recipe.shape) * ITEMSIZE[recipe.dtype]


def evaluate(recipe: Recipe, reader: TensorReader, region: Region | None = None) -> Array:
    """The recipe's result, or the box ``region`` of it, in its dtype."""
    region = whole(recipe.shape) if region is None else region
    if isinstance(recipe, Source):
        rows = reader.read_rows(recipe.key, *region[0])
        box = (slice(None), *(slice(*bounds) for bounds in region[1:]))
        return rows[box]
    if isinstance(recipe, Slice):
        start, stop = region[recipe.axis]
        return evaluate(
            recipe.of, reader, _at(region, recipe.axis, start + recipe.start, stop + recipe.start)
        )
    if isinstance(recipe, Cast):
        return _cast(evaluate(recipe.of, reader, region), recipe.to)
    if isinstance(recipe, Transpose):
        inner: list[tuple[int, int]] = [(0, 0)] * len(region)
        for out_axis, in_axis in enumerate(recipe.perm):
            inner[in_axis] = region[out_axis]
        return np.transpose(evaluate(recipe.of, reader, tuple(inner)), recipe.perm)
    if isinstance(recipe, Computed):
        rows = rope.table(recipe.kind, dict(recipe.args), *region[0])
        return rows[:, slice(*region[1])]
    if isinstance(recipe, Dequantize):
        return _dequantize(recipe, reader, region)
    if isinstance(recipe, Repeat):
        return _repeat(recipe, reader, region)
    if isinstance(recipe, Quantize):
        return _quantize(recipe, reader, region)
    if isinstance(recipe, QuantizeScale):
        return _quantize_scale(recipe, reader, region)
    return _assembled(recipe, reader, region)


def stream(recipe: Recipe, reader: TensorReader, chunk_bytes: int = 32 << 20) -> Iterator[Array]:
    """The result in row-major order as C-contiguous pieces of at most about ``chunk_bytes``."""
    for region in pieces(recipe.shape, ITEMSIZE[recipe.dtype], chunk_bytes):
        yield np.ascontiguousarray(evaluate(recipe, reader, region))


def pieces(shape: tuple[int, ...], itemsize: int, limit: int) -> Iterator[Region]:
    """Boxes that tile ``shape`` in row-major order, none over ``limit`` bytes unless one row already is."""
    row = math.prod(shape[1:]) * itemsize
    if row > limit and len(shape) > 1:
        for index in range(shape[0]):
            for inner in pieces(shape[1:], itemsize, limit):
                yield ((index, index + 1), *inner)
        return
    step = max(1, limit // max(row, 1))
    for start in range(0, shape[0], step):
        yield ((start, min(start + step, shape[0])), *whole(shape[1:]))


def _at(region: Region, axis: int, start: int, stop: int) -> Region:
    return (*region[:axis], (start, stop), *region[axis + 1 :])


def _extent(region: Region) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in region)


def _cast(array: Array, to: str) -> Array:
    if array.dtype == NUMPY[to]:
        return array
    return widen(array).astype(NUMPY[to], copy=False)


def _dequantize(recipe: Dequantize, reader: TensorReader, region: Region) -> Array:
    lead, (rows, columns) = region[:-2], region[-2:]
    n0, k0 = rows[0] // recipe.block_n, columns[0] // recipe.block_k
    n1, k1 = -(-rows[1] // recipe.block_n), -(-columns[1] // recipe.block_k)
    scale = evaluate(recipe.scale, reader, (*lead, (n0, n1), (k0, k1))).astype(np.float32, copy=False)
    out = widen(evaluate(recipe.weight, reader, region))
    for block in range(n0, n1):  # one band of block_n rows at a time: the widened scales stay one row wide
        top = max(block * recipe.block_n, rows[0]) - rows[0]
        bottom = min((block + 1) * recipe.block_n, rows[1]) - rows[0]
        wide = np.repeat(scale[..., block - n0, :], recipe.block_k, axis=-1)
        first = columns[0] - k0 * recipe.block_k
        out[..., top:bottom, :] *= wide[..., None, first : first + columns[1] - columns[0]]
    return out


def _repeat(recipe: Repeat, reader: TensorReader, region: Region) -> Array:
    start, stop = region[recipe.axis]
    first = start // recipe.times
    inner = evaluate(recipe.of, reader, _at(region, recipe.axis, first, -(-stop // recipe.times)))
    wide = np.repeat(inner, recipe.times, axis=recipe.axis)
    begin = start - first * recipe.times
    return wide[_along(recipe.axis, slice(begin, begin + stop - start))]


def _quantize(recipe: Quantize, reader: TensorReader, region: Region) -> Array:
    """Whole blocks are read, so that a block's scale does not depend on the region."""
    lead, (rows, columns) = region[:-2], region[-2:]
    n, k = recipe.of.shape[-2:]
    n0, k0 = rows[0] // recipe.block_n, columns[0] // recipe.block_k
    n1, k1 = -(-rows[1] // recipe.block_n), -(-columns[1] // recipe.block_k)
    top, left = n0 * recipe.block_n, k0 * recipe.block_k
    box = ((top, min(n1 * recipe.block_n, n)), (left, min(k1 * recipe.block_k, k)))
    weight = widen(evaluate(recipe.of, reader, (*lead, *box)))
    scale = block_scales(weight, recipe.block_n, recipe.block_k)
    codes = np.empty(_extent(region), NUMPY["e4m3"])
    for block in range(n1 - n0):  # one band of block_n rows at a time, as above
        first = block * recipe.block_n
        low = max(first, rows[0] - top)
        high = min(first + recipe.block_n, rows[1] - top)
        wide = np.repeat(scale[..., block, :], recipe.block_k, axis=-1)[..., columns[0] - left :]
        band = weight[..., low:high, columns[0] - left : columns[1] - left]
        parts = band / wide[..., None, : band.shape[-1]]
        np.clip(parts, -E4M3_MAX, E4M3_MAX, out=parts)
        codes[..., low + top - rows[0] : high + top - rows[0], :] = parts
    return codes


def _quantize_scale(recipe: QuantizeScale, reader: TensorReader, region: Region) -> Array:
    lead, (rows, columns) = region[:-2], region[-2:]
    n, k = recipe.of.shape[-2:]
    box = (
        (rows[0] * recipe.block_n, min(rows[1] * recipe.block_n, n)),
        (columns[0] * recipe.block_k, min(columns[1] * recipe.block_k, k)),
    )
    return block_scales(widen(evaluate(recipe.of, reader, (*lead, *box))), recipe.block_n, recipe.block_k)


def block_scales(weight: Array, block_n: int, block_k: int) -> Array:
    """f32[…, ⌈N / block_n⌉, ⌈K / block_k⌉] of weight f32[…, N, K]: max |w| of a block over 448, the largest e4m3;
    1 for a block of zeros. Never below the smallest normal f32: kernels flush what is below it to zero."""
    rows = np.maximum.reduceat(np.abs(weight), np.arange(0, weight.shape[-2], block_n), axis=-2)
    largest = np.maximum.reduceat(rows, np.arange(0, weight.shape[-1], block_k), axis=-1)
    scales = np.maximum(largest / np.float32(E4M3_MAX), np.finfo(np.float32).tiny)
    found: Array = np.where(largest > 0, scales, np.float32(1)).astype(np.float32)
    return found


def _assembled(recipe: Concat | Stack | Interleave | Pad, reader: TensorReader, region: Region) -> Array:
    """Recipes whose box is pasted together of boxes of their parts."""
    out = np.empty(_extent(region), NUMPY[recipe.dtype])
    if isinstance(recipe, Stack):
        for place, expert in enumerate(range(*region[0])):
            out[place] = evaluate(recipe.parts[expert], reader, region[1:])
        return out
    axis = recipe.axis
    start, stop = region[axis]
    if isinstance(recipe, Interleave):
        half = recipe.shape[axis] // 2
        for parity in (0, 1):
            first = -(-(start - parity) // 2)  # the first i with 2i + parity >= start
            last = -(-(stop - parity) // 2)
            if last > first:
                box = _at(region, axis, parity * half + first, parity * half + last)
                places = slice(2 * first + parity - start, stop - start, 2)
                out[_along(axis, places)] = evaluate(recipe.of, reader, box)
        return out
    if isinstance(recipe, Pad):
        size = recipe.of.shape[axis]
        kept = min(stop, size)
        if kept > start:
            out[_along(axis, slice(0, kept - start))] = evaluate(
                recipe.of, reader, _at(region, axis, start, kept)
            )
        out[_along(axis, slice(max(kept - start, 0), None))] = recipe.value
        return out
    offset = 0
    for part in recipe.parts:
        size = part.shape[axis]
        a, b = max(start, offset), min(stop, offset + size)
        if a < b:
            box = _at(region, axis, a - offset, b - offset)
            out[_along(axis, slice(a - start, b - start))] = evaluate(part, reader, box)
        offset += size
    return out


def _along(axis: int, bounds: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, bounds)
