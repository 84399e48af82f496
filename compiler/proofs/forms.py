"""Whether two recipes differ in nothing but the names of their checkpoint tensors, as experts of a layer do."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from functools import cache
from typing import Any, cast

from mm2c_runtime.weights.recipe import Computed, Concat, Pad, Recipe, Slice, Source, Stack

Keys = tuple[str, ...]


def keys_of(recipe: Recipe) -> Keys:
    """The checkpoint tensors, tables and paddings of a recipe, in the order in which ``alike`` gives them."""
    keys = alike(recipe, recipe)
    assert keys is not None
    return keys


def alike(one: Recipe, other: Recipe) -> Keys | None:
    """The keys of ``other`` in a fixed order, or None where its form is not that of ``one``."""
    keys: list[str] = []
    return tuple(keys) if _alike(one, other, keys) else None


def _alike(one: Any, other: Any, keys: list[str]) -> bool:
    # called for every expert of every layer of every rank: the commonest kinds first and by hand
    kind = type(one)
    if type(other) is not kind:
        return False
    if kind is Source:
        keys.append(other.key)
        return bool(one.shape == other.shape and one.dtype == other.dtype)
    if kind is Slice:
        same = one.start == other.start and one.stop == other.stop and one.axis == other.axis
        return same and _alike(one.of, other.of, keys)
    if kind is Concat or kind is Stack:
        if len(one.parts) != len(other.parts) or (kind is Concat and one.axis != other.axis):
            return False
        return all(_alike(a, b, keys) for a, b in zip(one.parts, other.parts, strict=True))
    if kind is Computed:
        keys.append(other.kind)
        return bool(one == other)
    for name in _inner(cast("Hashable", kind)):
        if not _alike(getattr(one, name), getattr(other, name), keys):
            return False
    if kind is Pad:
        keys.append(f"fill {other.value}")
    return all(getattr(one, name) == getattr(other, name) for name in _plain(cast("Hashable", kind)))


@cache
def _inner(kind: Hashable) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cast("Any", kind)) if f.name in ("of", "weight", "scale"))


@cache
def _plain(kind: Hashable) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cast("Any", kind)) if f.name not in ("of", "weight", "scale"))
