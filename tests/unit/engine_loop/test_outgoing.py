from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mm2c_runtime.server import outgoing
from mm2c_runtime.server.outgoing import Outgoing


def delta(request_id: str, text: str, calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "type": "delta",
        "id": request_id,
        "text": text,
        "reasoning": text.upper(),
        "tool_calls": calls or [],
        "token_ids": [len(text)],
        "logprobs": None,
    }


def gather(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Per request: all text, all token ids, and whether anything follows its end."""
    found: dict[str, Any] = {}
    for message in messages:
        text, tokens, ended = found.get(message["id"], ("", [], False))
        assert not ended
        if message["type"] == "delta":
            found[message["id"]] = (text + message["text"], tokens + message["token_ids"], False)
        else:
            found[message["id"]] = (text, tokens, True)
    return found


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=3), st.booleans()), max_size=40))
def test_joining_changes_nothing_but_the_number_of_messages(plan: list[tuple[str, str, bool]]) -> None:
    queue, taken, put = Outgoing(), [], []
    for request_id, text, take in plan:
        put.append(delta(request_id, text))
        queue.put(copy.deepcopy(put[-1]))
        if take:
            taken += queue.take() or []
    for request_id in {request_id for request_id, _, _ in plan}:
        put.append({"type": "finish", "id": request_id})
        queue.put({"type": "finish", "id": request_id})
    queue.close()
    taken += queue.take() or []
    assert gather(taken) == gather(put)
    assert queue.take() is None
    assert not queue.put({"type": "finish", "id": "late"})


def test_waiting_deltas_join_per_request() -> None:
    queue = Outgoing()
    for text in "xyz":
        queue.put(delta("a", text))
        queue.put(delta("b", text))
    messages = queue.take() or []
    assert [(m["id"], m["text"], m["token_ids"]) for m in messages] == [
        ("a", "xyz", [1] * 3),
        ("b", "xyz", [1] * 3),
    ]


def test_tool_call_deltas_join() -> None:
    queue = Outgoing()
    head = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    queue.put(delta("a", "", [head]))
    for part in ('{"k"', ":1}"):
        queue.put(delta("a", "", [{"index": 0, "function": {"arguments": part}}]))
    queue.put(delta("a", "", [{**head, "index": 1, "function": {"name": "g", "arguments": ""}}]))
    (message,) = queue.take() or []
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"k":1}'},
        {"name": "g", "arguments": ""},
    ]


def test_a_client_that_does_not_read_is_given_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(outgoing, "LIMIT", 3)
    queue = Outgoing()
    assert [queue.put({"type": "started", "id": str(n)}) for n in range(4)] == [True, True, True, False]
