"""Tool-call deltas as clients know them from OpenAI's API, and as whole calls."""

from __future__ import annotations

from typing import Any

Delta = dict[str, Any]


def deltas(parts: list[Delta]) -> list[Delta]:
    """The engine's parts in OpenAI's shape; consecutive parts of one call become one.

    A part is ``index`` and ``arguments`` (text to append), with ``id`` and ``name`` where it opens the call.
    """
    joined: list[Delta] = []
    for part in parts:
        opens = part.get("name") is not None
        if joined and not opens and joined[-1]["index"] == part["index"]:
            joined[-1]["function"]["arguments"] += part["arguments"]
        elif opens:
            function = {"name": part["name"], "arguments": part["arguments"]}
            joined.append({"index": part["index"], "id": part["id"], "type": "function", "function": function})
        else:
            joined.append({"index": part["index"], "function": {"arguments": part["arguments"]}})
    return joined


def whole(parts: list[Delta]) -> list[Delta]:
    """All parts of a message as calls: id, type, function; without the ``index`` that only a stream needs."""
    calls: dict[int, Delta] = {}
    for delta in deltas(parts):
        if "id" in delta:
            calls[delta["index"]] = {name: value for name, value in delta.items() if name != "index"}
        else:
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return list(calls.values())
