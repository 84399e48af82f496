"""Takes JSON schemas apart into variants: plain keywords, of which a value must satisfy one variant.

``$ref`` and ``allOf`` are merged in, ``anyOf``, ``oneOf`` and ``nullable`` multiplied out; what is inside of
properties and items stays as it is. Keywords that a grammar cannot enforce are refused, not ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from mm2c_runtime.errors import RequestError
from mm2c_runtime.parsing.schema import ANY, members, resolve

Variant = dict[
    str, Any
]  # "type" is always there: a frozenset of names; "enum" covers const; "pattern" a list

_MOST_VARIANTS = 64
_MOST_PARTS = 2000
_MOST_MULTIPLE = 10_000  # llguidance's automaton has as many states, and takes 50 µs for each
_ALIASES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
_ALIASES |= {"list": "array", "dict": "object"}
_NOT_ENFORCED = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"),
    *("uniqueItems", "contains", "minContains", "maxContains", "propertyNames", "$dynamicRef"),
)
_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_COUNTS = ("minLength", "minItems", "minProperties", "maxLength", "maxItems", "maxProperties")
_OTHER = ("multipleOf", "format", "prefixItems", "patternProperties")


class UnsatisfiableError(Exception):
    """A schema that no value satisfies; harmless where the value is optional."""


def refuse(message: str) -> NoReturn:
    raise RequestError("INVALID_ARGUMENT", message)


@contextmanager
def named(where: str) -> Iterator[None]:
    """What is refused inside is told with ``where`` it stands."""
    try:
        yield
    except RequestError as error:
        raise RequestError(error.code, f"{where}: {error.message}") from None


def variants(
    node: Any, root: Any, _seen: tuple[str, ...] = (), _left: Iterator[int] | None = None
) -> list[Variant]:
    """The variants of ``node``, whose references point into ``root``; an empty list admits nothing.

    Raises RequestError INVALID_ARGUMENT for an invalid schema and for one that cannot be enforced.
    """
    _left = iter(range(_MOST_PARTS)) if _left is None else _left
    if next(_left, None) is None:
        refuse(f"schema that unfolds into more than {_MOST_PARTS} parts for one value cannot be enforced")
    if isinstance(node, bool):
        return [{"type": ANY}] if node else []
    if not isinstance(node, Mapping):
        refuse(f"invalid schema: {_shown(node)} is neither an object nor a boolean")
    found = [_own(node)]
    if "$ref" in node:
        reference = node["$ref"]
        if reference in _seen:
            refuse(f"invalid schema: $ref {_shown(reference)} refers to itself")
        found = _product(found, variants(_target(reference, root), root, (*_seen, reference), _left))
    for keyword in ("allOf", "anyOf", "oneOf"):
        if keyword in node and not members(node, keyword):
            refuse(f"invalid schema: {keyword} must be a list that is not empty")
    for member in members(node, "allOf"):
        found = _product(found, variants(member, root, _seen, _left))
    for keyword in ("anyOf", "oneOf"):
        if members(node, keyword):
            choices = [
                one for member in members(node, keyword) for one in variants(member, root, _seen, _left)
            ]
            found = _product(found, choices)
    if node.get("nullable") is True:
        found.append({"type": frozenset({"null"})})
    found = [one for one in found if one["type"] and one.get("enum", True)]
    return _limited(found)


def _target(reference: Any, root: Any) -> Any:
    """What a local reference points to."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        refuse(f"invalid schema: $ref {_shown(reference)} does not point into the schema itself")
    node = resolve(reference, root, None)
    if node is None:
        refuse(f"invalid schema: $ref {_shown(reference)} points to nothing")
    return node


def _own(node: Mapping[str, Any]) -> Variant:
    """The node's own keywords, checked."""
    for keyword in _NOT_ENFORCED:
        if node.get(keyword, False) is not False:
            refuse(f"the schema keyword {keyword} cannot be enforced")
    own: Variant = {"type": _types(node)}
    for keyword in _LEAST + _MOST:
        value = node.get(keyword)
        if value is None or value is False:
            continue
        if value is True and keyword.startswith("exclusive"):  # draft 4
            value = node.get(keyword.replace("exclusiveM", "m"))
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or (keyword in _COUNTS and value < 0)
        ):
            refuse(f"invalid schema: {keyword} is {_shown(node[keyword])}")
        own[keyword] = int(value) if keyword in _COUNTS else value
    if "multipleOf" in node:
        _check_multiple(node["multipleOf"])
    if "enum" in node or "const" in node:
        choices = node.get("enum", [node.get("const")])
        if not isinstance(choices, list):
            refuse("invalid schema: enum must be a list")
        if "const" in node:
            choices = [one for one in choices if _identity(one) == _identity(node["const"])]
        own["enum"] = choices
    if "pattern" in node:
        if not isinstance(node["pattern"], str) or re.search(r"(?<!\\)(?:\\\\)*\\\Z", node["pattern"]):
            refuse(f"invalid schema: pattern {_shown(node['pattern'])} is no regular expression")
        own["pattern"] = [node["pattern"]]
    if "items" in node and isinstance(node["items"], list):  # draft 4
        own["prefixItems"], own["items"] = node["items"], node.get("additionalItems", True)
    elif "items" in node:
        own["items"] = node["items"]
    for keyword in ("properties", "patternProperties"):
        if not isinstance(node.get(keyword, {}), Mapping):
            refuse(f"invalid schema: {keyword} must be an object")
    required = node.get("required", [])
    if isinstance(required, list):
        if not all(isinstance(name, str) for name in required):
            refuse("invalid schema: required must be a list of names")
        own["required"] = list(required)
    for keyword in ("properties", "additionalProperties", *_OTHER):
        if keyword in node:
            own[keyword] = node[keyword]
    return own


def _check_multiple(number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not number > 0:
        refuse(f"invalid schema: multipleOf is {_shown(number)}")
    digits = str(number).replace(".", "").partition("e")[0].rstrip("0")
    if int(digits or 0) > _MOST_MULTIPLE or (number == int(number) and number > _MOST_MULTIPLE):
        refuse(
            f"multipleOf {_shown(number)} cannot be enforced: its digits make more than {_MOST_MULTIPLE:,}"
        )


def _types(node: Mapping[str, Any]) -> frozenset[str]:
    declared = node.get("type")
    if declared is None:
        return ANY
    names = declared if isinstance(declared, list) else [declared]
    types = set()
    for name in names:
        plain = name.lower() if isinstance(name, str) else ""
        plain = _ALIASES.get(plain, plain)
        if plain not in ANY:
            refuse(f"invalid schema: type {_shown(name)} does not exist")
        types |= {"integer", "number"} if plain == "number" else {plain}
    return frozenset(types)


def _product(some: list[Variant], others: list[Variant]) -> list[Variant]:
    merged = (_merged(one, other) for one in some for other in others)
    return _limited([one for one in merged if one["type"]])


def _limited(found: list[Variant]) -> list[Variant]:
    if len(found) > _MOST_VARIANTS:
        refuse(f"schema with more than {_MOST_VARIANTS} combinations of its alternatives cannot be enforced")
    return found


def _merged(one: Variant, other: Variant) -> Variant:
    """What satisfies both."""
    both: Variant = {**one, **other, "type": one["type"] & other["type"]}
    choose: dict[str, Callable[[Any, Any], Any]] = {
        **dict.fromkeys(_LEAST, max),
        **dict.fromkeys(_MOST, min),
    }
    choose["pattern"] = choose["required"] = lambda a, b: [*a, *(x for x in b if x not in a)]
    choose["items"] = _both
    choose["enum"] = _common
    for keyword in one.keys() & other.keys() - {"type", "properties", "additionalProperties"}:
        if keyword in choose:
            both[keyword] = choose[keyword](one[keyword], other[keyword])
        elif one[keyword] != other[keyword]:
            refuse(f"two different {keyword} for one value cannot be enforced together")
    return _merged_properties(one, other, both)


def _merged_properties(one: Variant, other: Variant, both: Variant) -> Variant:
    if "properties" in one or "properties" in other:
        both["properties"] = {}
        for name in [*one.get("properties", {}), *other.get("properties", {})]:
            both["properties"][name] = _both(*(_property(side, name) for side in (one, other)))
    if "additionalProperties" in one or "additionalProperties" in other:
        sides = (side.get("additionalProperties", True) for side in (one, other))
        both["additionalProperties"] = _both(*sides)
    return both


def _property(side: Variant, name: str) -> Any:
    return side.get("properties", {}).get(name, side.get("additionalProperties", True))


def _both(one: Any, other: Any) -> Any:
    """The schema for what satisfies both; each condition once, so that merging what is recursive comes to an end."""
    if one is False or other is False:
        return False
    parts = {json.dumps(part, sort_keys=True): part for side in (one, other) for part in _conditions(side)}
    if len(parts) < 2:
        return next(iter(parts.values()), True)
    return {"allOf": [parts[key] for key in sorted(parts)]}


def _conditions(node: Any) -> list[Any]:
    if node is True:
        return []
    if isinstance(node, Mapping) and node.keys() == {"allOf"} and members(node, "allOf"):
        return [part for member in members(node, "allOf") for part in _conditions(member)]
    return [node]


def type_of(value: Any) -> str:
    """The JSON type of a value; ``1.0`` is an integer too."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float) and not value.is_integer():
        return "number"
    if isinstance(value, (int, float)):
        return "integer"
    names = {str: "string", type(None): "null", list: "array", dict: "object"}
    return names.get(type(value), "object")


def _common(some: list[Any], others: list[Any]) -> list[Any]:
    """The values of ``some`` that are among ``others``."""
    known = set(map(_identity, others))
    return [value for value in some if _identity(value) in known]


def _identity(value: Any) -> str:
    """The same text for values that JSON takes for equal, ``1`` and ``1.0`` among them."""
    return json.dumps(_plain_numbers(value), sort_keys=True)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain_numbers(one) for key, one in value.items()}
    return [_plain_numbers(one) for one in value] if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    return json.dumps(value, default=repr)[:80]
