"""Joining OpenAI-shaped tool-call deltas: a client may get several in one response."""

from __future__ import annotations

from typing import Any

Delta = dict[str, Any]


def join(deltas: list[Delta]) -> list[Delta]:
    """Deltas of the same ``index`` become one: the first gives id, type and name, arguments are concatenated."""
    joined: dict[int, Delta] = {}
    for delta in deltas:
        index = int(delta.get("index", len(joined)))
        function = delta.get("function") or {}
        if index not in joined:
            joined[index] = {**delta, "index": index, "function": dict(function)}
            continue
        into = joined[index]["function"]
        for name, value in function.items():
            into[name] = into.get(name, "") + value if name == "arguments" else value
        for name, value in delta.items():
            if name != "function" and value is not None:
                joined[index][name] = value
    return [joined[index] for index in sorted(joined)]


def whole(deltas: list[Delta]) -> list[Delta]:
    """Every delta of a message as finished calls: id, type, function; without the streaming ``index``."""
    return [{name: value for name, value in call.items() if name != "index"} for call in join(deltas)]
