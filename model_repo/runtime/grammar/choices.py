"""Which of an enum's values satisfy the keywords beside it."""

from __future__ import annotations

import math
import re
from typing import Any

from mm2c_runtime.grammar.schema import Variant, refuse, type_of


def fitting(variant: Variant) -> list[Any]:
    """The values of ``variant["enum"]`` that satisfy its type, range, length and pattern."""
    return [value for value in variant["enum"] if _fits(value, variant)]


def _fits(value: Any, variant: Variant) -> bool:
    if type_of(value) not in variant["type"]:
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return math.isfinite(value) and (
            variant.get("minimum", value) <= value <= variant.get("maximum", value)
            and ("exclusiveMinimum" not in variant or value > variant["exclusiveMinimum"])
            and ("exclusiveMaximum" not in variant or value < variant["exclusiveMaximum"])
        )
    if isinstance(value, str):
        return _counted(value, variant, "Length") and all(
            _matches(value, one) for one in variant.get("pattern", ())
        )
    return not isinstance(value, list) or _counted(value, variant, "Items")


def _counted(value: Any, variant: Variant, what: str) -> bool:
    count = len(value)
    return bool(variant.get(f"min{what}", 0) <= count <= variant.get(f"max{what}", count))


def _matches(value: str, pattern: str) -> bool:
    try:
        return re.search(pattern, value) is not None
    except (re.error, RecursionError):
        refuse(f"pattern {pattern[:120]!r} beside an enum cannot be checked")
