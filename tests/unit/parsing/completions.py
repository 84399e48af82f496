"""Builds completions and reads streams back, for the parser's tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mm2c_runtime.parsing import Delta, Message, MessageStream


def tool(name: str, properties: Any = None, **parameters: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties or {}, **parameters}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def block(*invokes: str) -> str:
    return "\n<minimax:tool_call>\n" + "".join(f"{one}\n" for one in invokes) + "</minimax:tool_call>"


def invoke(name: str, **values: str) -> str:
    parameters = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in values.items())
    return f'<invoke name="{name}">\n{parameters}</invoke>'


def stream(chunks: Iterable[str], tools: Any = None, *, cut: bool = False, **options: bool) -> list[Delta]:
    """All deltas of a ``MessageStream`` made with these options, fed these chunks, and ended (``cut`` or not)."""
    parser = MessageStream(tools, **options)
    deltas = [delta for chunk in chunks for delta in parser.feed(chunk)]
    return deltas + parser.finish(cut=cut)


def chunks(text: str, sizes: Sequence[int]) -> list[str]:
    """``text`` in pieces of these sizes, over and over."""
    pieces, at, turn = [], 0, 0
    while at < len(text):
        pieces.append(text[at : at + sizes[turn % len(sizes)]])
        at, turn = at + sizes[turn % len(sizes)], turn + 1
    return pieces


def arguments(message: Message) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in message.tool_calls]


def joined(deltas: Iterable[Delta], kind: str) -> str:
    return "".join(delta.text for delta in deltas if delta.kind == kind)


def streamed_calls(deltas: Iterable[Delta]) -> dict[int, tuple[str, str]]:
    """What a client makes of the deltas: index → (name, argument text)."""
    calls: list[tuple[str, list[str]]] = []
    for delta in deltas:
        if delta.kind == "call":
            assert delta.index == len(calls)
            assert delta.id
            assert delta.name
            calls.append((delta.name, []))
        elif delta.kind == "arguments":
            assert delta.index == len(calls) - 1
            assert delta.text
            calls[-1][1].append(delta.text)
        else:
            assert delta.text
    return {index: (name, "".join(texts)) for index, (name, texts) in enumerate(calls)}


def assert_same(deltas: list[Delta], message: Message) -> None:
    """The stream says what the batch says, and no cut call looks whole."""
    assert joined(deltas, "reasoning") == message.reasoning
    assert joined(deltas, "content") == message.content
    calls = streamed_calls(deltas)
    whole = {call.index: call for call in message.tool_calls}
    assert whole.keys() <= calls.keys()
    for index, (name, text) in calls.items():
        if index in whole:
            assert name == whole[index].name
            assert json.loads(text) == json.loads(whole[index].arguments)
        else:
            assert message.incomplete is not None
            assert not text.endswith("}") or not _is_json(text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
