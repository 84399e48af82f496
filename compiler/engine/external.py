"""Graphs whose tensors lie in a safetensors file beside them, as ONNX external data at byte offsets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from mm2c_runtime.weights.recipe import ITEMSIZE, Recipe

Entry = tuple[str, tuple[int, ...], int, int]  # dtype, shape, offset from the start of the file, bytes


def write_external(
    model: ir.Model,
    path: Path,
    recipes: Mapping[str, Recipe],
    location: str,
    entries: Mapping[str, Entry] | None,
) -> None:
    """Serialise ``model`` to ``path``; initializers without data point into the file ``location`` of its
    folder.

    ``entries`` says where each tensor lies. None: no file is there (yet), and the graph states the name of
    the file and each tensor's size only.

    Raises:
        ValueError: a tensor has no recipe, no entry, or an entry of another dtype, shape or size.
    """
    values = [v for v in model.graph.initializers.values() if v.const_value is None]
    try:
        for value in values:
            value.const_value = _external(value, recipes, location, entries)
        path.write_bytes(ir.to_proto(model).SerializeToString())
    finally:
        for value in values:
            value.const_value = None


def _external(
    value: ir.Value, recipes: Mapping[str, Recipe], location: str, entries: Mapping[str, Entry] | None
) -> ir.ExternalTensor:
    name = value.name
    if name is None or name not in recipes or value.dtype is None:
        raise ValueError(f"the graph's tensor {name} has no recipe")
    recipe = recipes[name]
    size = math.prod(recipe.shape) * ITEMSIZE[recipe.dtype]
    offset = None
    if entries is not None:
        if name not in entries:
            raise ValueError(f"{location} has no tensor {name}")
        dtype, shape, offset, length = entries[name]
        if (dtype, tuple(shape), length) != (recipe.dtype, recipe.shape, size):
            raise ValueError(
                f"{location}: {name} is {dtype}{list(shape)} of {length} bytes, the graph reads "
                f"{recipe.dtype}{list(recipe.shape)} of {size}"
            )
    return ir.ExternalTensor(location, offset, size, value.dtype, shape=ir.Shape(recipe.shape), name=name)
