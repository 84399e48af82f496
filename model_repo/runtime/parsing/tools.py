"""Looks up, among the tools of a request, the schema that a parameter of a call is read by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mm2c_runtime.parsing.header import Header
from mm2c_runtime.parsing.schema import ParameterSchema, members, resolve

_UNDECLARED = ParameterSchema({}, None)


class Tools:
    """The parameter schemas of OpenAI tool definitions (``{"type": "function", "function": {…}}`` or bare).

    What is not a tool definition is passed over: a parser must not fail where the request was accepted.
    """

    def __init__(self, tools: Any) -> None:
        self._parameters: dict[str, Any] = {}
        self._schemas: dict[tuple[str, str], ParameterSchema] = {}
        for tool in tools if isinstance(tools, (list, tuple)) else ():
            function = tool.get("function", tool) if isinstance(tool, Mapping) else None
            if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                self._parameters.setdefault(function["name"], function.get("parameters"))

    def tool_name(self, header: Header) -> str:
        """The tool that the header of an invoke names: a declared name, whatever it looks like, goes first."""
        return header.name if header.bare is None or header.name in self._parameters else header.bare

    def parameter_name(self, tool: str, header: Header) -> str:
        """The same for the header of a parameter of ``tool``."""
        if header.bare is None:
            return header.name
        root = self._parameters.get(tool)
        return header.bare if _declared(root, header.name) is None else header.name

    def schema(self, tool: str, parameter: str) -> ParameterSchema:
        """The schema of ``parameter`` of ``tool``; one that admits anything for what is not declared."""
        key = (tool, parameter)
        if key not in self._schemas:
            root = self._parameters.get(tool)
            schema = _find(root, parameter)
            if schema is None:
                return _UNDECLARED
            self._schemas[key] = ParameterSchema(schema, root)
        return self._schemas[key]


def _find(root: Any, parameter: str) -> Any:
    """The schema of a property within its parameters' schema; None if it is not declared."""
    try:
        declared = _declared(root, parameter)
        return next(_additional(root, root, set()), None) if declared is None else declared
    except RecursionError:  # nested beyond what a tool can mean
        return None


def _declared(root: Any, parameter: str) -> Any:
    try:
        return _property(root, parameter, root, {})
    except RecursionError:
        return None


def _property(node: Any, name: str, root: Any, known: dict[int, Any]) -> Any:
    """What ``node`` and all that it is combined of say of the property, as one schema; None if nothing."""
    if not isinstance(node, Mapping):
        return None
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = None
    properties = node.get("properties")
    said = [properties.get(name)] if isinstance(properties, Mapping) else []
    if "$ref" in node:
        said.append(_property(resolve(node["$ref"], root), name, root, known))
    said += [_property(member, name, root, known) for member in members(node, "allOf")]
    for keyword in ("anyOf", "oneOf"):
        choices = [_property(member, name, root, known) for member in members(node, keyword)]
        if any(choice is not None for choice in choices):
            said.append({"anyOf": [True if choice is None else choice for choice in choices]})
    said = [schema for schema in said if schema is not None]
    if said:
        known[id(node)] = said[0] if len(said) == 1 else {"allOf": said}
    return known[id(node)]


def _additional(node: Any, root: Any, seen: set[int]) -> Iterator[Mapping[str, Any]]:
    """The schemas of properties that have none of their own."""
    if not isinstance(node, Mapping) or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node.get("additionalProperties"), Mapping):
        yield node["additionalProperties"]
    if "$ref" in node:
        yield from _additional(resolve(node["$ref"], root), root, seen)
    for keyword in ("allOf", "anyOf", "oneOf"):
        for member in members(node, keyword):
            yield from _additional(member, root, seen)
