"""Copies a caller's data into plain JSON types, the only ones that a template may see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm2c_runtime.errors import RequestError


def plain(value: Any, where: str) -> Any:
    """A deep copy of ``value`` in dict, list, tuple, str, int, float, bool and None.

    Subclasses lose what they add, since a template could call it; anything else is refused, named by
    ``where``.
    """
    try:
        return _plain(value, where)
    except RecursionError:
        raise RequestError("INVALID_ARGUMENT", f"{where} is nested too deeply") from None


def _plain(value: Any, where: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    for scalar in (str, int, float):
        if isinstance(value, scalar):
            return scalar.__str__(value) if scalar is str else scalar(value)
    raise RequestError("INVALID_ARGUMENT", f"{where} is a {type(value).__name__}, which is not JSON")
