"""A rank's weight file as the arrays that its pieces name."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mm2c.proofs.pieces import Axis
from mm2c_runtime.weights.dtypes import SAFETENSORS
from mm2c_runtime.weights.recipe import ITEMSIZE, Recipe
from mm2c_runtime.weights.safetensors_file import read_header

Array = np.ndarray[Any, Any]
BITS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
}  # numbers as their bytes


class ShardFile:
    """One safetensors file of a rank; threads may read at once. ``path`` is the path in the bundle."""

    def __init__(self, bundle: Path, path: str) -> None:
        self.path = path
        self.rank = int(Path(path).parent.name.removeprefix("rank"))
        self._handle = os.open(bundle / path, os.O_RDONLY)
        self._size = os.fstat(self._handle).st_size
        self._places: dict[str, int] = {}
        self._raw = b""
        with suppress(ValueError):  # told by ``fault``
            self._raw = read_header(bundle / path)

    def close(self) -> None:
        os.close(self._handle)

    def fault(self, recipes: dict[str, Recipe]) -> str | None:
        """What is wrong with the header, which names ``recipes``, one behind the other, and nothing else."""
        try:
            table: dict[str, Any] = json.loads(self._raw)
            if json.dumps(table, separators=(",", ":")).encode() != self._raw.rstrip(b" "):
                return "the header is not as it was written"
            end = 0
            for name, entry in table.items():
                recipe = recipes[name]
                size = math.prod(recipe.shape) * ITEMSIZE[recipe.dtype]
                if entry != {
                    "dtype": SAFETENSORS[recipe.dtype],
                    "shape": list(recipe.shape),
                    "data_offsets": [end, end + size],
                }:
                    return f"the header says otherwise of {name}"
                self._places[name] = 8 + len(self._raw) + end
                end += size
        except (ValueError, KeyError, TypeError, AttributeError):
            return "the header cannot be read"
        if set(table) != set(recipes):
            return "the header lacks tensors"
        if 8 + len(self._raw) + end != self._size:
            return f"the file has {self._size} bytes, its header tells of {8 + len(self._raw) + end}"
        return None

    def bytes_at(self, tensor: str, begin: int, size: int) -> Array:
        """u8[size] from byte ``begin`` of a tensor on."""
        data = np.empty(size, np.uint8)
        view, place = data.data, self._places[tensor] + begin
        while view:
            count = os.preadv(self._handle, [view[: 1 << 30]], place)
            if not count:
                raise OSError(f"{self.path} became shorter while it was read")
            view, place = view[count:], place + count
        return data

    def read(self, tensor: str, recipe: Recipe, axes: Sequence[Axis]) -> Array:
        """What stands at the axes' places, as numbers of the element's width: no more is read than the rows between
        the first and the last of them."""
        shape, width = recipe.shape, ITEMSIZE[recipe.dtype]
        split = next((n for n, axis in enumerate(axes) if axis.stop - axis.start > 1), len(axes) - 1)
        row = math.prod(shape[split + 1 :]) * width
        begin = 0
        for axis, size in zip(axes[: split + 1], shape[: split + 1], strict=True):
            begin = begin * size + axis.start
        rows = axes[split].stop - axes[split].start
        data = self.bytes_at(tensor, begin * row, rows * row).view(BITS[width])
        box = data.reshape(*(1 for _ in axes[:split]), rows, *shape[split + 1 :])
        for number, axis in enumerate(axes):
            origin = axis.start if number <= split else 0
            box = _taken(box, number, axis, origin)
        return box


def _taken(box: Array, number: int, axis: Axis, origin: int) -> Array:
    start = axis.start - origin
    if axis.step == axis.repeat or axis.size == 1:
        places: Any = slice(start, start + axis.places)
    elif axis.repeat == 1:
        places = slice(start, start + (axis.size - 1) * axis.step + 1, axis.step)
    else:
        steps = axis.step * np.arange(axis.size)[:, None] + np.arange(axis.repeat)
        places = start + steps.reshape(-1)
    index = (*(slice(None),) * number, places)
    taken: Array = box[index]
    return taken
