"""Narrowing a recipe: slices are pushed down to the checkpoint tensors; no byte outside them is read."""

from __future__ import annotations

from mm2c_runtime.weights.recipe import (
    Cast,
    Concat,
    Dequantize,
    Quantize,
    QuantizeScale,
    Recipe,
    Repeat,
    Slice,
    Stack,
)


def narrow(recipe: Recipe, axis: int, start: int, stop: int) -> Recipe:
    """The entries [start, stop) of ``recipe`` along ``axis``.

    Rewrite rules:
      1. the whole axis            -> the recipe itself
      2. Slice, same axis          -> one Slice with the offsets added
      3. Cast                      -> Cast of the narrowed tensor
      4. Stack, axis 0             -> Stack of the parts in range; other axes -> Stack of narrowed parts
      5. Concat, its own axis      -> Concat of the parts (or their pieces) in range; other axes -> of each
         part
      6. Repeat, its own axis      -> Repeat of the entries that the range touches; other axes -> of the
         narrowed tensor
      7. Dequantize, Quantize      -> of the blocks that the range touches
      8. QuantizeScale             -> of the elements of those blocks
      9. anything else             -> Slice around it; likewise around 6 and 7 where the range cuts what was
         kept whole

    Raises:
        ValueError: if the range is empty or leaves the tensor.
    """
    size = recipe.shape[axis]
    if not 0 <= start < stop <= size:
        raise ValueError(f"range [{start}, {stop}) is not inside axis {axis} of {recipe.shape}")
    if (start, stop) == (0, size):
        return recipe
    if isinstance(recipe, Slice) and recipe.axis == axis:
        return narrow(recipe.of, axis, recipe.start + start, recipe.start + stop)
    if isinstance(recipe, Cast):
        return Cast(narrow(recipe.of, axis, start, stop), recipe.to)
    if isinstance(recipe, Stack):
        if axis == 0:
            return Stack(recipe.parts[start:stop])
        return Stack(tuple(narrow(part, axis - 1, start, stop) for part in recipe.parts))
    if isinstance(recipe, Concat):
        if axis != recipe.axis:
            return Concat(tuple(narrow(part, axis, start, stop) for part in recipe.parts), recipe.axis)
        return _narrow_concat(recipe, start, stop)
    if isinstance(recipe, Repeat):
        return _narrow_repeat(recipe, axis, start, stop)
    if isinstance(recipe, (Dequantize, Quantize, QuantizeScale)):
        return _narrow_blocks(recipe, axis, start, stop)
    return Slice(recipe, axis, start, stop)


def join(parts: tuple[Recipe, ...], axis: int) -> Recipe:
    """``Concat`` of the parts; stacks of equal length are joined part by part and stay stacks, which lets the
    repacker hold one expert at a time."""
    if len(parts) == 1:
        return parts[0]
    stacks = [part for part in parts if isinstance(part, Stack)]
    if axis > 0 and len(stacks) == len(parts) and len({len(stack.parts) for stack in stacks}) == 1:
        rows = zip(*(stack.parts for stack in stacks), strict=True)
        return Stack(tuple(join(tuple(row), axis - 1) for row in rows))
    flat: list[Recipe] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Concat) and part.axis == axis else (part,))
    return Concat(tuple(flat), axis)


def repeat(recipe: Recipe, axis: int, times: int) -> Recipe:
    """``Repeat`` inside stacks and joined tensors, which keep their form: see ``join``."""
    if times == 1:
        return recipe
    if isinstance(recipe, Stack) and axis > 0:
        return Stack(tuple(repeat(part, axis - 1, times) for part in recipe.parts))
    if isinstance(recipe, Concat):
        return Concat(tuple(repeat(part, axis, times) for part in recipe.parts), recipe.axis)
    if isinstance(recipe, Repeat) and recipe.axis == axis:
        return Repeat(recipe.of, axis, recipe.times * times)
    return Repeat(recipe, axis, times)


def _narrow_concat(recipe: Concat, start: int, stop: int) -> Recipe:
    kept: list[Recipe] = []
    offset = 0
    for part in recipe.parts:
        size = part.shape[recipe.axis]
        low, high = max(start - offset, 0), min(stop - offset, size)
        if low < high:
            kept.append(narrow(part, recipe.axis, low, high))
        offset += size
    return join(tuple(kept), recipe.axis)


def _narrow_repeat(recipe: Repeat, axis: int, start: int, stop: int) -> Recipe:
    if axis != recipe.axis:
        return Repeat(narrow(recipe.of, axis, start, stop), recipe.axis, recipe.times)
    first, last = start // recipe.times, -(-stop // recipe.times)
    kept = Repeat(narrow(recipe.of, axis, first, last), axis, recipe.times)
    return _within(kept, axis, start - first * recipe.times, stop - first * recipe.times)


def _narrow_blocks(recipe: Dequantize | Quantize | QuantizeScale, axis: int, start: int, stop: int) -> Recipe:
    block = {len(recipe.shape) - 2: recipe.block_n, len(recipe.shape) - 1: recipe.block_k}.get(axis, 1)
    if isinstance(recipe, QuantizeScale):
        high = min(stop * block, recipe.of.shape[axis])
        return QuantizeScale(narrow(recipe.of, axis, start * block, high), recipe.block_n, recipe.block_k)
    first, last = start // block, -(-stop // block)
    low, high = first * block, min(last * block, recipe.shape[axis])
    kept: Recipe
    if isinstance(recipe, Quantize):
        kept = Quantize(narrow(recipe.of, axis, low, high), recipe.block_n, recipe.block_k)
    else:
        weight, scale = narrow(recipe.weight, axis, low, high), narrow(recipe.scale, axis, first, last)
        kept = Dequantize(weight, scale, recipe.block_n, recipe.block_k)
    return _within(kept, axis, start - low, stop - low)


def _within(recipe: Recipe, axis: int, start: int, stop: int) -> Recipe:
    return recipe if (start, stop) == (0, recipe.shape[axis]) else Slice(recipe, axis, start, stop)
