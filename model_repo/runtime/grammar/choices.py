"""Which of an enum's values satisfy the keywords beside it."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from mm2c_runtime.grammar import text
from mm2c_runtime.grammar.schema import Variant, refuse, type_of

# pydantic's patterns are Rust's: their time is linear, where `re` may take forever.
_Pattern = TypeAdapter[str]


def fitting(variant: Variant) -> list[Any]:
    """The values of ``variant["enum"]`` that satisfy its type, range, length and pattern."""
    patterns = [_compiled(pattern) for pattern in variant.get("pattern", ())]
    return [value for value in variant["enum"] if _fits(value, variant, patterns)]


def _fits(value: Any, variant: Variant, patterns: list[_Pattern]) -> bool:
    if type_of(value) not in variant["type"]:
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return math.isfinite(value) and (
            variant.get("minimum", value) <= value <= variant.get("maximum", value)
            and ("exclusiveMinimum" not in variant or value > variant["exclusiveMinimum"])
            and ("exclusiveMaximum" not in variant or value < variant["exclusiveMaximum"])
        )
    if isinstance(value, str):
        return _counted(value, variant, "Length") and all(_matches(one, value) for one in patterns)
    return not isinstance(value, list) or _counted(value, variant, "Items")


def _counted(value: Any, variant: Variant, what: str) -> bool:
    count = len(value)
    return bool(variant.get(f"min{what}", 0) <= count <= variant.get(f"max{what}", count))


def _compiled(pattern: str) -> _Pattern:
    whole = rf"\A(?:{text.searched(pattern)})\z"
    try:
        return TypeAdapter(Annotated[str, StringConstraints(pattern=whole)])
    except SchemaError as error:
        refuse(f"pattern {pattern[:120]!r} beside an enum cannot be checked: {str(error)[:200]}")


def _matches(pattern: _Pattern, value: str) -> bool:
    try:
        pattern.validate_python(value)
    except ValidationError:
        return False
    return True
