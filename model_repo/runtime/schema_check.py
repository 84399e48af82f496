"""Whether a JSON schema makes sense, told before a model is asked to follow it.

The parser reads around nonsense and a grammar refuses it; without a grammar a mistyped schema would show only in
odd arguments. What is checked is the form of the keywords that the parser and the grammar read; whether a grammar
can enforce them is another matter.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any, NoReturn

from mm2c_runtime.errors import RequestError
from mm2c_runtime.json_input import kind
from mm2c_runtime.parsing.schema import ANY, resolve

# JSON schema's names, those that the parser takes for them (``parsing.schema``), and two that say anything goes.
TYPES = ANY | {"int", "float", "bool", "str", "list", "dict", "any", "tuple"}
_SCHEMA = ("additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_NUMBERS = ("minimum", "maximum", "multipleOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def check_schema(where: str, schema: Any) -> None:
    """Raises RequestError INVALID_ARGUMENT that names the place. ``schema`` is plain JSON of bounded depth."""
    open_places = [(where, schema)]
    while open_places:
        place, node = open_places.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            _refuse(place, f"a schema is an object or a boolean, not {kind(node)}")
        node = {name: value for name, value in node.items() if value is not None or name == "const"}
        _check_values(place, node)
        if "$ref" in node:
            _check_reference(place, node["$ref"], schema)
        open_places += _inner(place, node)


def _inner(place: str, node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword in _SCHEMA:
        if keyword in node:
            yield f"{place}.{keyword}", node[keyword]
    items = node.get("items", True)
    if isinstance(items, list):  # of drafts before 2020-12
        yield from ((f"{place}.items[{index}]", item) for index, item in enumerate(items))
    else:
        yield f"{place}.items", items
    for keyword in _SCHEMAS:
        if keyword in node:
            members = node[keyword]
            if not isinstance(members, list) or not members:
                _refuse(f"{place}.{keyword}", "is a list of schemas that is not empty")
            yield from ((f"{place}.{keyword}[{index}]", member) for index, member in enumerate(members))
    for keyword in _NAMED:
        named = node.get(keyword, {})
        if not isinstance(named, dict):
            _refuse(f"{place}.{keyword}", f"is an object of schemas by name, not {kind(named)}")
        yield from ((f"{place}.{keyword}.{name}", member) for name, member in named.items())


def _check_values(place: str, node: dict[str, Any]) -> None:
    types = node.get("type", "any")
    for name in types if isinstance(types, list) and types else [types]:
        if not isinstance(name, str) or name not in TYPES:
            close = difflib.get_close_matches(name, TYPES, n=1) if isinstance(name, str) else []
            meant = f'; did you mean "{close[0]}"?' if close else ""
            _refuse(f"{place}.type", f"{json.dumps(name)[:80]} is no JSON type{meant}")
    required = node.get("required", [])
    # Of drafts before 4 and of some clients: a flag at the property itself.
    if not isinstance(required, bool) and not (
        isinstance(required, list) and all(isinstance(name, str) for name in required)
    ):
        _refuse(f"{place}.required", "is a list of names")
    if not isinstance(node.get("enum", []), list) or node.get("enum") == []:
        _refuse(f"{place}.enum", "is a list of values that is not empty")
    for keyword in _NUMBERS:
        value = node.get(keyword, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            _refuse(f"{place}.{keyword}", f"is a number, not {kind(value)}")
    if node.get("multipleOf", 1) <= 0:
        _refuse(f"{place}.multipleOf", "is a number greater than 0")
    for keyword in _COUNTS:
        value = node.get(keyword, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
            _refuse(f"{place}.{keyword}", "is a whole number of at least 0")
    if not isinstance(node.get("pattern", ""), str):
        _refuse(f"{place}.pattern", f"is a string, not {kind(node['pattern'])}")


def _check_reference(place: str, reference: Any, root: Any) -> None:
    if not isinstance(reference, str):
        _refuse(f"{place}.$ref", f"is a string, not {kind(reference)}")
    if not reference.startswith("#"):
        _refuse(
            f"{place}.$ref", f"{json.dumps(reference)[:80]} points out of the schema, and nothing is fetched"
        )
    if resolve(reference, root, None) is None:
        _refuse(f"{place}.$ref", f"{json.dumps(reference)[:80]} points nowhere")


def _refuse(place: str, reason: str) -> NoReturn:
    raise RequestError("INVALID_ARGUMENT", f"{place}: invalid schema: {reason}")
