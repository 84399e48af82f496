"""Looks up, among the tools of a request, the schema that a parameter of a call is read by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mm2c_runtime.parsing.schema import ParameterSchema, resolve


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

    def schema(self, tool: str, parameter: str) -> ParameterSchema:
        """The schema of ``parameter`` of ``tool``; one that admits anything for what is not declared."""
        key = (tool, parameter)
        if key not in self._schemas:
            root = self._parameters.get(tool)
            self._schemas[key] = ParameterSchema(_find(root, parameter), root)
        return self._schemas[key]


def _find(root: Any, parameter: str) -> Any:
    """The subschema(s) for a property, through references and combinations of the parameters' own schema."""
    try:
        nodes = list(_parts(root, root, set()))
    except RecursionError:  # nested beyond what a tool can mean
        return {}
    declared = [
        node["properties"][parameter]
        for node in nodes
        if isinstance(node.get("properties"), Mapping) and parameter in node["properties"]
    ]
    if not declared:
        declared = [
            node["additionalProperties"]
            for node in nodes
            if isinstance(node.get("additionalProperties"), Mapping)
        ]
    if len(declared) == 1:
        return declared[0]
    return {"anyOf": declared} if declared else {}


def _parts(node: Any, root: Any, seen: set[int]) -> Iterator[Mapping[str, Any]]:
    if not isinstance(node, Mapping) or id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if "$ref" in node:
        yield from _parts(resolve(node["$ref"], root), root, seen)
    for keyword in ("allOf", "anyOf", "oneOf"):
        members = node.get(keyword)
        for member in members if isinstance(members, list) else ():
            yield from _parts(member, root, seen)
