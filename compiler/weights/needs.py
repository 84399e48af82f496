"""Which rows of which checkpoint tensors a box of a recipe's result is made of."""

from __future__ import annotations

from mm2c_runtime.weights.evaluate import Region, whole
from mm2c_runtime.weights.recipe import (
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

Rows = dict[str, tuple[int, int]]  # key -> the first row and the row behind the last one, gaps included


def needed_rows(recipe: Recipe, region: Region | None = None) -> Rows:
    """What ``evaluate(recipe, reader, region)`` reads, and in that order."""
    rows: Rows = {}
    _collect(recipe, whole(recipe.shape) if region is None else region, rows)
    return rows


def sources(recipe: Recipe) -> list[Source]:
    """Every checkpoint tensor of the expression, in reading order, as often as it is named."""
    found: list[Source] = []
    waiting: list[Recipe] = [recipe]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Source):
            found.append(node)
        elif isinstance(node, (Concat, Stack)):
            waiting.extend(reversed(node.parts))
        elif isinstance(node, Dequantize):
            waiting += (node.scale, node.weight)
        elif not isinstance(node, Computed):
            waiting.append(node.of)
    return found


def _collect(recipe: Recipe, region: Region, rows: Rows) -> None:
    if isinstance(recipe, Source):
        start, stop = region[0]
        known = rows.get(recipe.key, (start, stop))
        rows[recipe.key] = (min(known[0], start), max(known[1], stop))
    elif isinstance(recipe, Stack):
        for part in recipe.parts[slice(*region[0])]:
            _collect(part, region[1:], rows)
    elif isinstance(recipe, Concat):
        offset = 0
        for part in recipe.parts:
            size = part.shape[recipe.axis]
            low, high = max(region[recipe.axis][0], offset), min(region[recipe.axis][1], offset + size)
            if low < high:
                _collect(part, _at(region, recipe.axis, low - offset, high - offset), rows)
            offset += size
    elif isinstance(recipe, Slice):
        start, stop = region[recipe.axis]
        _collect(recipe.of, _at(region, recipe.axis, start + recipe.start, stop + recipe.start), rows)
    elif isinstance(recipe, Cast):
        _collect(recipe.of, region, rows)
    elif isinstance(recipe, Transpose):
        inner = [(0, 0)] * len(region)
        for out_axis, in_axis in enumerate(recipe.perm):
            inner[in_axis] = region[out_axis]
        _collect(recipe.of, tuple(inner), rows)
    elif isinstance(recipe, Dequantize):
        _collect(recipe.weight, region, rows)
        _collect(recipe.scale, _scale_box(region, recipe.block_n, recipe.block_k), rows)
    elif isinstance(recipe, Repeat):
        start, stop = region[recipe.axis]
        box = _at(region, recipe.axis, start // recipe.times, -(-stop // recipe.times))
        _collect(recipe.of, box, rows)
    elif isinstance(recipe, Quantize):
        blocks = _scale_box(region, recipe.block_n, recipe.block_k)
        _collect(recipe.of, _weight_box(blocks, recipe.of.shape, recipe.block_n, recipe.block_k), rows)
    elif isinstance(recipe, QuantizeScale):
        _collect(recipe.of, _weight_box(region, recipe.of.shape, recipe.block_n, recipe.block_k), rows)
    elif isinstance(recipe, Interleave):
        half = recipe.shape[recipe.axis] // 2
        start, stop = region[recipe.axis]
        for parity in (0, 1):
            low, high = -(-(start - parity) // 2), -(-(stop - parity) // 2)
            if low < high:
                box = _at(region, recipe.axis, parity * half + low, parity * half + high)
                _collect(recipe.of, box, rows)
    elif isinstance(recipe, Pad):
        start, stop = region[recipe.axis]
        stop = min(stop, recipe.of.shape[recipe.axis])
        if start < stop:
            _collect(recipe.of, _at(region, recipe.axis, start, stop), rows)


def _at(region: Region, axis: int, start: int, stop: int) -> Region:
    return (*region[:axis], (start, stop), *region[axis + 1 :])


def _scale_box(region: Region, block_n: int, block_k: int) -> Region:
    (n0, n1), (k0, k1) = region[-2:]
    return (*region[:-2], (n0 // block_n, -(-n1 // block_n)), (k0 // block_k, -(-k1 // block_k)))


def _weight_box(blocks: Region, shape: tuple[int, ...], block_n: int, block_k: int) -> Region:
    (n0, n1), (k0, k1) = blocks[-2:]
    rows = (n0 * block_n, min(n1 * block_n, shape[-2]))
    return (*blocks[:-2], rows, (k0 * block_k, min(k1 * block_k, shape[-1])))
