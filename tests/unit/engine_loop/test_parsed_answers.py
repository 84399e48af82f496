"""Messages through the engine: reasoning, content and tool calls apart, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from toy_engine import ToyExecutor, ToyTemplate, toy_engine, toy_tokenizer

from mm2c_runtime.completion import Completion, Stream
from mm2c_runtime.errors import RequestError
from mm2c_runtime.requests import parse_request

MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
        },
    }
]
INVOKE = '<invoke name="add">\n<parameter name="n">12</parameter>\n</invoke>'
CALL = f"<minimax:tool_call>\n{INVOKE}\n</minimax:tool_call>"


def run(said: str, *, stream: bool = True, **options: Any) -> tuple[Completion, int]:
    tokenizer = toy_tokenizer()
    prompt = tokenizer.encode(ToyTemplate().render(MESSAGES), add_special_tokens=False).ids
    script = tokenizer.encode(said, add_special_tokens=False).ids
    executor = ToyExecutor(context=512, scripts={tuple(prompt): script})
    engine = toy_engine(executor)
    try:
        answer = Stream(lambda: None)
        fields = {"messages": MESSAGES, "tools": TOOLS, "stream": stream, **options}
        count = 0

        def on_event(event: Any) -> None:
            nonlocal count
            count += 1
            answer.put(event)

        engine.submit("a", parse_request(fields), on_event)
        return answer.completion(), count
    finally:
        engine.close()


@pytest.mark.parametrize("stream", [True, False])
def test_thought_content_and_call(stream: bool) -> None:
    found, events = run("so I add\n</think>\n\nLet me see.\n" + CALL, stream=stream)
    assert found.reasoning == "so I add"
    assert found.text == "Let me see."
    assert found.finish_reason == "tool_calls"
    (call,) = found.tool_calls
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "add"
    assert json.loads(call["function"]["arguments"]) == {"n": 12}
    assert events > 10 if stream else events == 3


def test_a_cut_call_is_never_whole() -> None:
    said = "x</think>" + CALL
    cut = len(toy_tokenizer().encode(said, add_special_tokens=False).ids) - 20
    whole, _ = run(said, stream=False, max_tokens=cut)
    assert whole.finish_reason == "length"
    assert whole.tool_calls == []
    streamed, _ = run(said, max_tokens=cut)
    assert streamed.finish_reason == "length"
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(streamed.tool_calls[0]["function"]["arguments"])


def test_verbatim_without_parsing() -> None:
    found, _ = run("so</think>\n\nyes", parse=False)
    assert found.text == "so</think>\n\nyes"
    assert found.reasoning == ""


def test_stream_raises_errors_and_cancels_when_left() -> None:
    cancelled = []
    answer = Stream(lambda: cancelled.append(1))
    answer.put({"type": "delta", "id": "a", "text": "x", "reasoning": "", "tool_calls": [], "token_ids": [1]})
    deltas = answer.deltas()
    assert next(deltas).text == "x"
    deltas.close()  # type: ignore[attr-defined]
    assert cancelled
    answer = Stream(lambda: None)
    answer.put({"type": "error", "id": "a", "code": "INTERNAL", "message": "boom"})
    with pytest.raises(RequestError, match="INTERNAL: boom"):
        answer.completion()
