"""JSON form of recipes: one list per node, its first item the node's name, the rest its fields in order."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mm2c_runtime.weights import recipe as r
from mm2c_runtime.weights.recipe import Recipe

_NODES: dict[str, type[Any]] = {
    kind.__name__.lower(): kind
    for kind in (
        r.Source,
        r.Computed,
        r.Slice,
        r.Concat,
        r.Stack,
        r.Dequantize,
        r.Cast,
        r.Transpose,
        r.Interleave,
        r.Pad,
        r.Repeat,
        r.Quantize,
        r.QuantizeScale,
    )
}
_RECIPES = tuple(_NODES.values())


def to_json(recipe: Recipe) -> list[Any]:
    """``["slice", ["source", "k", "bf16", [4, 2]], 0, 0, 2]``."""

    def plain(value: Any) -> Any:
        if isinstance(value, _RECIPES):
            return to_json(value)
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return value

    return [type(recipe).__name__.lower(), *(plain(getattr(recipe, f.name)) for f in fields(recipe))]


def from_json(value: list[Any]) -> Recipe:
    """Inverse of ``to_json``. ValueError for a name that is no recipe."""
    name, *items = value
    if name not in _NODES:
        raise ValueError(f"{name!r} is no recipe; recipes are {', '.join(_NODES)}")

    def read(item: Any) -> Any:
        if not isinstance(item, list):
            return item
        if item and isinstance(item[0], str) and item[0] in _NODES:
            return from_json(item)
        return tuple(read(part) for part in item)

    node: Recipe = _NODES[name](*(read(item) for item in items))
    return node
