"""Which stored tensors of a layer are not what their recipes make of the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mm2c.verify.tensor_source import FileSource, TensorSource
from mm2c_runtime.weights.evaluate import TensorReader, evaluate, whole
from mm2c_runtime.weights.recipe import Recipe
from mm2c_runtime.weights.recipe_file import read_recipes, recipes_path

NAMED = 4  # tensors of a layer that are named
ROWS = 64 << 20  # bytes that are compared at a time
_OUTSIDE = {"embedding": ("model.embed_tokens.",), "logits": ("model.norm.", "lm_head.")}


def prefixes_of(layer: str) -> tuple[str, ...]:
    """How the tensors of a layer, of the embedding or of the head begin."""
    return _OUTSIDE.get(layer) or (f"model.layers.{layer}.", "rope.")


def faulty_tensors(
    weights: Sequence[Path], sources: Sequence[TensorSource], reader: TensorReader, layer: str
) -> tuple[str, ...]:
    """Names with ranks, and experts where the tensor is a stack; empty where all is as it should be, or where the
    bundle has no copies."""
    found: list[str] = []
    for rank, (path, source) in enumerate(zip(weights, sources, strict=True)):
        if not isinstance(source, FileSource) or not recipes_path(path).is_file():
            continue
        recipes = read_recipes(path)
        for name, recipe in recipes.items():
            if name.startswith(prefixes_of(layer)) and (place := _difference(name, recipe, source, reader)):
                found.append(f"rank {rank}: {name}, {place}")
                if len(found) == NAMED:
                    return tuple(found)
    return tuple(found)


def _difference(name: str, recipe: Recipe, source: TensorSource, reader: TensorReader) -> str:
    for start, stop in _ranges(recipe.shape, source.itemsize(name)):
        stored = source.rows(name, start, stop)
        made = np.ascontiguousarray(evaluate(recipe, reader, ((start, stop), *whole(recipe.shape)[1:])))
        if stored.tobytes() != made.tobytes():
            size = stored[0].nbytes
            ours, theirs = (
                stored.view(np.uint8).reshape(len(stored), size),
                made.view(np.uint8).reshape(-1, size),
            )
            first = start + int(np.flatnonzero((ours != theirs).any(1))[0])
            return f"{'expert' if len(recipe.shape) == 3 else 'row'} {first}"
    return ""


def _ranges(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    step = max(1, ROWS // max(math.prod(shape[1:]) * itemsize, 1))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
