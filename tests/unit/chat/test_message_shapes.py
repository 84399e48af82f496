"""Every shape of conversation: ours is what transformers makes of it, and what a released template made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_golden import GOLDEN
from tokenizers import Tokenizer, models

from mm2c_runtime.chat import ChatTemplate, will_reason
from mm2c_runtime.errors import RequestError

FOLDER = Path(__file__).parents[2] / "fixtures" / "tiny-m2"
TEMPLATE = ChatTemplate.from_bundle(FOLDER)
CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))


def called(*calls: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    listed = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": listed, **more}


def nested(depth: int) -> dict[str, Any]:
    inner = {"type": "string", "description": 'é <b>"&'} if depth == 0 else nested(depth - 1)
    return {
        "type": "object",
        "properties": {"inner": inner, "list": {"type": "array", "items": {"enum": [1, "a", None, True]}}},
        "required": ["inner"],
        "additionalProperties": False,
    }


TOOLS = [
    {
        "type": "function",
        "function": {"name": f"tool_{i}", "description": f"No. {i}", "parameters": nested(i)},
    }
    for i in range(6)
]
USER, SYSTEM = {"role": "user", "content": "What now?"}, {"role": "system", "content": "Be brief."}
CALL = called(
    ("f", {"s": "a\nb", "n": 1, "deep": {"k": [None, True, "é"]}}), ("g", {}), reasoning_content="I must."
)
RESULTS = [{"role": "tool", "content": "one"}, {"role": "tool", "content": "two"}]
REASONED = {"role": "assistant", "content": "a", "reasoning_content": "r"}
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
SHAPES: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "user": ([USER], None),
    "system and user": ([SYSTEM, USER], None),
    "no tools": ([SYSTEM, USER], []),
    "one tool": ([USER], TOOLS[:1]),
    "many tools with nested schemas": ([SYSTEM, USER], TOOLS),
    "an answer": ([USER, {"role": "assistant", "content": "This."}], None),
    "reasoning before the last question": ([USER, REASONED, USER], None),
    "reasoning after it": ([USER, REASONED], None),
    "reasoning within the content": ([USER, {"role": "assistant", "content": "<think>\nr\n</think>\n\na"}], None),
    "calls with reasoning": ([USER, CALL], TOOLS),
    "calls with content": ([USER, {**CALL, "content": "I call."}], TOOLS),
    "consecutive results": ([USER, CALL, *RESULTS], TOOLS),
    "results, then an answer": ([USER, CALL, *RESULTS, {"role": "assistant", "content": "Done."}], TOOLS),
    "two rounds": ([USER, CALL, *RESULTS, called(("h", {"x": "</parameter>"})), RESULTS[0]], TOOLS),
    "a result in parts": ([USER, CALL, {"role": "tool", "content": [*PARTS, {"output": "two"}]}], None),
    "content in parts": ([{"role": "user", "content": PARTS}], None),
    "a later system message": ([SYSTEM, USER, SYSTEM, USER], None),
}  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"u": 0}, unk_token="u"))
    source = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=source)


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_renders_as_in_transformers(reference: Any, shape: str, add: bool) -> None:
    messages, tools = SHAPES[shape]
    want = reference.apply_chat_template(messages, tools or None, add_generation_prompt=add, tokenize=False)
    assert TEMPLATE.render(messages, tools, add) == want
    assert TEMPLATE.render(messages, tools, add, clean=False) == want
    assert will_reason(TEMPLATE.render(messages, tools)) is True


@pytest.mark.parametrize("shape", SHAPES)
def test_what_clients_send_renders_the_same(shape: str) -> None:
    messages, tools = SHAPES[shape]
    assert TEMPLATE.render([as_sent(message) for message in messages], tools) == TEMPLATE.render(
        messages, tools
    )


def as_sent(message: dict[str, Any]) -> dict[str, Any]:
    """As OpenAI clients return it: arguments as JSON text, null for no content, keys without a value."""
    sent = {"refusal": None, "tool_calls": None, **message}
    sent["content"] = message["content"] or None
    if "reasoning_content" in message:
        sent["reasoning"] = sent.pop("reasoning_content")
    if message.get("tool_calls"):
        sent["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return sent


@pytest.mark.parametrize("number", range(len(CASES)))
def test_goldens_of_a_released_template(number: int) -> None:
    inputs = dict(CASES[number]["inputs"])
    arguments = (inputs.pop("messages"), inputs.pop("tools", None))
    if CASES[number].get("error"):
        with pytest.raises(RequestError, match="INVALID_ARGUMENT"):
            TEMPLATE.render(*arguments, clean=False, **inputs)
    else:
        assert TEMPLATE.render(*arguments, clean=False, **inputs) == CASES[number]["text"]


def test_the_last_marker_of_the_prompt_decides_whether_it_reasons() -> None:
    assert not will_reason(TEMPLATE.render([USER], add_generation_prompt=False))
    answered = [USER, REASONED]
    assert not will_reason(TEMPLATE.render(answered, TOOLS, add_generation_prompt=False))
    assert will_reason(TEMPLATE.render([*answered, USER], TOOLS))
    assert not will_reason(
        TEMPLATE.render([{"role": "user", "content": "</think>"}]).removesuffix("<think>\n")
    )
