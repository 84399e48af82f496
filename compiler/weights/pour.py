"""Puts a box of a recipe's result where it belongs in a buffer, with no copy between the read and the buffer where
nothing is computed."""

from __future__ import annotations

from typing import Any

import numpy as np

from mm2c_runtime.weights.evaluate import Region, TensorReader, evaluate
from mm2c_runtime.weights.recipe import Concat, Recipe, Slice, Source, Stack

Array = np.ndarray[Any, Any]
# Codes are moved as integers: numpy copies those without the interpreter's lock, other libraries' dtypes with it.
CODES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}


def pour(recipe: Recipe, region: Region, out: Array, reader: TensorReader) -> None:
    """Fill ``out``, unsigned integers of the recipe's item size and the region's extent."""
    if isinstance(recipe, Source):
        rows = reader.read_rows(recipe.key, *region[0]).view(out.dtype)
        box = (slice(None), *(slice(*bounds) for bounds in region[1:]))
        out[...] = rows[box]
    elif isinstance(recipe, Stack):
        for place, part in enumerate(recipe.parts[slice(*region[0])]):
            pour(part, region[1:], out[place], reader)
    elif isinstance(recipe, Slice):
        start, stop = region[recipe.axis]
        inner = (start + recipe.start, stop + recipe.start)
        pour(recipe.of, (*region[: recipe.axis], inner, *region[recipe.axis + 1 :]), out, reader)
    elif isinstance(recipe, Concat):
        start, stop = region[recipe.axis]
        offset = 0
        for part in recipe.parts:
            size = part.shape[recipe.axis]
            low, high = max(start, offset), min(stop, offset + size)
            if low < high:
                part_box = (*region[: recipe.axis], (low - offset, high - offset), *region[recipe.axis + 1 :])
                along = (*(slice(None),) * recipe.axis, slice(low - start, high - start))
                pour(part, part_box, out[along], reader)
            offset += size
    else:
        out[...] = evaluate(recipe, reader, region).view(out.dtype)
