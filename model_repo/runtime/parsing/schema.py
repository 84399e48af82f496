"""Reads a parameter's text by its JSON schema.

The chat template writes a string argument as it is and everything else as JSON; this is its inverse. Nothing
here raises, whatever the schema: a keyword that makes no sense is as good as absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from mm2c_runtime.parsing.json_text import encodable, quote

ANY = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
# JSON schema's names, and those that Python and OpenAPI users write in their place.
_TYPES = {name: frozenset({name}) for name in ANY} | {
    "number": frozenset({"integer", "number"}),
    "int": frozenset({"integer"}),
    "float": frozenset({"integer", "number"}),
    "bool": frozenset({"boolean"}),
    "str": frozenset({"string"}),
    "list": frozenset({"array"}),
    "dict": frozenset({"object"}),
}
_ANYTHING: Mapping[str, Any] = {}
_MOST_DIGITS = 4300  # of an integer that Python's own JSON reader accepts
_EXACT_INTEGER = 2**53  # beyond this a float no longer says which integer was meant


class ParameterSchema:
    """One parameter's schema, read within the tool's ``root`` schema that its ``$ref`` point into."""

    def __init__(self, schema: Any, root: Any) -> None:
        self._schema, self._root = schema, root
        self._type_memo: dict[int, frozenset[str]] = {}
        try:
            self.types = self._types(schema)
        except RecursionError:  # nested beyond what a tool can mean
            self.types = ANY
        # Exactly the text between the markers, so it can stream as it grows.
        self.is_text = self.types <= {"string"}

    def read(self, text: str) -> str:
        """The JSON text of the value written as ``text``.

        JSON that fits is passed on as it was written, so no digit of a number is lost. In the order of
        preference: a JSON value that fits the schema's types and choices, the text itself if a string fits,
        one of the schema's choices with space around it or in quotes, a JSON value of a declared type, the
        text.
        """
        if self.is_text:
            return quote(text)
        trimmed = text.strip()
        value, is_json = _json_value(trimmed)
        if is_json and not isinstance(value, str) and self._fits(value):
            return self._written(trimmed, value)
        if self._fits(text):
            return quote(text)
        if self._fits(trimmed):
            return quote(trimmed)
        if is_json and isinstance(value, str) and self._fits(value):
            return quote(value)
        if is_json and _type_of(value) in self.types - {"string"}:
            return self._written(trimmed, value)
        return quote(text)

    def _written(self, trimmed: str, value: Any) -> str:
        """``1.0`` where only integers are declared is the integer 1: typed clients refuse the fraction."""
        if isinstance(value, float) and "number" not in self.types and abs(value) < _EXACT_INTEGER:
            return str(int(value))
        return encodable(trimmed)

    def _types(self, node: Any) -> frozenset[str]:
        """The JSON types that ``node`` may admit; a cycle of references admits any."""
        if not isinstance(node, Mapping):
            return ANY if node is not False else frozenset()
        known = self._type_memo.get(id(node))
        if known is None:
            self._type_memo[id(node)] = ANY
            known = self._type_memo[id(node)] = self._types_of_mapping(node)
        return known

    def _types_of_mapping(self, node: Mapping[str, Any]) -> frozenset[str]:
        types = _declared_types(node)
        if "$ref" in node:
            types &= self._types(self._resolve(node["$ref"]))
        for member in members(node, "allOf"):
            types &= self._types(member)
        for keyword in ("anyOf", "oneOf"):
            choices = members(node, keyword)
            if choices:
                types &= frozenset().union(*map(self._types, choices))
        if isinstance(node.get("enum"), list):
            types &= frozenset(map(_type_of, node["enum"]))
        if "const" in node:
            types &= {_type_of(node["const"])}
        return types | {"null"} if node.get("nullable") is True else types

    def _fits(self, value: Any) -> bool:
        """Whether the types and the choices (enum, const) admit ``value``; its members are not looked at."""
        admitted: dict[int, bool] = {}

        def fits(node: Any) -> bool:
            if not isinstance(node, Mapping):
                return node is not False
            if id(node) not in admitted:
                admitted[id(node)] = True
                admitted[id(node)] = self._admits(node, value, fits)
            return admitted[id(node)]

        try:
            return fits(self._schema)
        except RecursionError:
            return True

    def _admits(self, node: Mapping[str, Any], value: Any, fits: Callable[[Any], bool]) -> bool:
        if value is None and node.get("nullable") is True:
            return True
        if _type_of(value) not in _declared_types(node):
            whole = isinstance(value, float) and value.is_integer()
            if not (whole and "integer" in _declared_types(node)):
                return False
        if "$ref" in node and not fits(self._resolve(node["$ref"])):
            return False
        if not all(map(fits, members(node, "allOf"))):
            return False
        for keyword in ("anyOf", "oneOf"):
            choices = members(node, keyword)
            if choices and not any(map(fits, choices)):
                return False
        if isinstance(node.get("enum"), list) and not any(_same(value, choice) for choice in node["enum"]):
            return False
        return "const" not in node or _same(value, node["const"])

    def _resolve(self, reference: Any) -> Any:
        return resolve(reference, self._root)


def resolve(reference: Any, root: Any, nothing: Any = _ANYTHING) -> Any:
    """What a local ``$ref`` (``#/$defs/…``) points to; ``nothing``, which admits anything, where that is nothing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return nothing
    node = root
    for step in unquote(reference[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and step in node:
            node = node[step]
        elif isinstance(node, list) and step.isdecimal() and int(step[:9]) < len(node):
            node = node[int(step[:9])]
        else:
            return nothing
    return node


def members(node: Mapping[str, Any], keyword: str) -> Sequence[Any]:
    """The subschemas under ``allOf``, ``anyOf`` or ``oneOf``."""
    given = node.get(keyword)
    return given if isinstance(given, list) else ()


def _declared_types(node: Mapping[str, Any]) -> frozenset[str]:
    declared = node.get("type")
    names = declared if isinstance(declared, list) else [declared]
    types: frozenset[str] = frozenset()
    for name in names:
        types |= _TYPES.get(name.lower(), ANY) if isinstance(name, str) else ANY
    types = types or ANY
    return types | {"null"} if node.get("nullable") is True else types


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    if value is None:
        return "null"
    return "array" if isinstance(value, (list, tuple)) else "object"


def _same(one: Any, other: Any) -> bool:
    """JSON equality: 1 and 1.0 are the same, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _json_value(text: str) -> tuple[Any, bool]:
    """The value that ``text`` is JSON for, and whether it is; NaN and infinities are not."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_readable), True
    except (ValueError, RecursionError):
        return None, False


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _readable(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError("more digits than clients can read")
    return int(text)
