"""A rank's tensors, read a few rows at a time: from its weight file, or from the checkpoint by its recipes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from mm2c.checkpoint.shard import TensorInfo, read_shard
from mm2c_runtime.errors import BundleError
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.evaluate import TensorReader, evaluate, whole
from mm2c_runtime.weights.recipe import Recipe
from mm2c_runtime.weights.recipe_file import read_recipes

Array = np.ndarray[Any, Any]


class TensorSource(Protocol):
    """Tensors by name, in their stored dtypes (numpy's and ml_dtypes')."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def itemsize(self, name: str) -> int: ...

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` along the first axis, copied: nothing stays mapped."""

    def close(self) -> None: ...


def read_whole(source: TensorSource, name: str) -> Array:
    """The whole tensor; a scalar too."""
    shape = source.shape(name)
    return source.rows(name, 0, shape[0]) if shape else source.rows(name, 0, 1).reshape(())


def size_of(source: TensorSource, name: str) -> int:
    """Bytes."""
    return math.prod(source.shape(name)) * source.itemsize(name)


class FileSource:
    """A safetensors file of the bundle. Raises BundleError where a tensor is not there or the file is cut short."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors, _ = read_shard(path)
        self._handle = os.open(path, os.O_RDONLY)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._info(name).shape

    def itemsize(self, name: str) -> int:
        return int(NUMPY[self._info(name).dtype].itemsize)

    def rows(self, name: str, start: int, stop: int) -> Array:
        info = self._info(name)
        out = np.empty((stop - start, *info.shape[1:]), NUMPY[info.dtype])
        view = out.reshape(-1).view(np.uint8).data
        place = info.offset + start * (info.nbytes // max(info.shape[0] if info.shape else 1, 1))
        while view:
            count = os.preadv(self._handle, [view[: 1 << 30]], place)
            if not count:
                raise BundleError(f"{self.path.name} ends in the middle of {name}", where=str(self.path))
            view, place = view[count:], place + count
        return out

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _info(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise BundleError(f"{self.path.name} has no tensor {name}", where=str(self.path))
        return self._tensors[name]


class RecipeSource:
    """What a rank's file would hold, made of the checkpoint's tensors when it is asked for."""

    def __init__(self, recipes: dict[str, Recipe], reader: TensorReader) -> None:
        self._recipes, self._reader = recipes, reader

    def shape(self, name: str) -> tuple[int, ...]:
        return self._recipes[name].shape

    def itemsize(self, name: str) -> int:
        return int(NUMPY[self._recipes[name].dtype].itemsize)

    def rows(self, name: str, start: int, stop: int) -> Array:
        recipe = self._recipes[name]
        region = whole(recipe.shape)
        if region:
            region = ((start, stop), *region[1:])
        return np.ascontiguousarray(evaluate(recipe, self._reader, region))

    def close(self) -> None:
        pass


def open_source(weights: Path, reader: TensorReader) -> TensorSource:
    """The file, or where the bundle has no copy of the weights the recipes beside its place."""
    if weights.is_file():
        return FileSource(weights)
    return RecipeSource(read_recipes(weights), reader)


class Sources:
    """The sources of a bundle's ranks, closed together."""

    def __init__(self, weights: list[Path], reader: TensorReader) -> None:
        self.ranks = [open_source(path, reader) for path in weights]

    def __enter__(self) -> list[TensorSource]:
        return self.ranks

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for source in self.ranks:
            source.close()
