"""Joining OpenAI-shaped tool-call deltas: a response may carry several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Delta = dict[str, Any]


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    """Consecutive argument text of one call becomes one delta. The deltas given are not changed."""
    calls: list[Delta] = []
    for delta in deltas:
        append_call(calls, {**delta, "function": dict(delta["function"])})
    return calls


def append_call(calls: list[Delta], delta: Delta) -> None:
    """Adds a delta, which may be changed by the next; argument text joins the entry before it where that is the
    same call."""
    if calls and "id" not in delta and calls[-1]["index"] == delta["index"]:
        calls[-1]["function"]["arguments"] += delta["function"]["arguments"]
    else:
        calls.append(delta)


def whole(deltas: Iterable[Delta]) -> list[Delta]:
    """All deltas of a message as calls: id, type, function; without the ``index`` of a stream."""
    calls: dict[int, Delta] = {}
    for delta in joined(deltas):
        call = calls.get(delta["index"])
        if call is None:
            calls[delta["index"]] = {name: value for name, value in delta.items() if name != "index"}
        else:
            call["function"]["arguments"] += delta["function"]["arguments"]
    return list(calls.values())
