"""Chat completions through the official client, with a scripted engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk
from running_front import RunningFront
from scripted_engine import ended

from mm2c_runtime.errors import RequestError
from mm2c_runtime.openai.answer import Head
from mm2c_runtime.openai.chat import ChatChunks
from mm2c_runtime.openai.triton import Part

HELLO: Any = [{"role": "user", "content": "Hello!"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def test_a_whole_answer(front: RunningFront) -> None:
    answer = front.client().chat.completions.create(model="m2", messages=HELLO)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello"
    assert choice.message.reasoning_content == "I think."  # type: ignore[attr-defined]
    assert choice.message.tool_calls is None
    assert choice.logprobs is None
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        5,
        3,
        8,
    )
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "m2"
    assert answer.system_fingerprint == "fp_test"
    assert answer._request_id is not None
    assert front.engine.asked == [
        {"messages": json.dumps(HELLO, separators=(",", ":")), "stream": False, "sampling_parameters": "{}"}
    ]


def test_a_stream(front: RunningFront) -> None:
    chunks = list(front.client().chat.completions.create(model="m2", messages=HELLO, stream=True))
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "I think."},
        {"content": "Hello"},
        {},
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert front.engine.asked[0]["stream"] is True


def test_the_events_of_a_stream(front: RunningFront) -> None:
    body = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    status, text, headers = front.ask("/v1/chat/completions", body)
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_reasoning_content_and_calls_of_one_part_are_chunks_of_their_own(front: RunningFront) -> None:
    delta = {"index": 0, **CALL}
    front.engine.script = lambda fields: [ended("tool_calls", reasoning="r", text="t", tool_calls=[delta])]
    chunks = list(front.client().chat.completions.create(model="m2", messages=HELLO, stream=True))
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks]
    assert [set(one) for one in deltas] == [
        {"role", "content"}, {"reasoning_content"}, {"content"}, {"tool_calls"}, set()
    ]  # fmt: skip
    assert deltas[3]["tool_calls"] == [delta]


def test_tool_calls(front: RunningFront) -> None:
    front.engine.script = lambda fields: [Part(reasoning="hm", tool_calls=[CALL]), ended("tool_calls")]
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    choice_of_tool: Any = {"type": "function", "function": {"name": "f"}}
    answer = front.client().chat.completions.create(
        model="m2", messages=HELLO, tools=tools, tool_choice=choice_of_tool, parallel_tool_calls=False
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].model_dump() == CALL
    asked = front.engine.asked[0]
    assert json.loads(asked["tools"]) == tools
    assert json.loads(asked["tool_choice"]) == choice_of_tool
    assert asked["parallel_tool_calls"] is False


def test_an_answer_without_text_or_calls_is_empty_not_null(front: RunningFront) -> None:
    front.engine.script = lambda fields: [ended("length", reasoning="cut")]
    assert front.client().chat.completions.create(model="m2", messages=HELLO).choices[0].message.content == ""


def test_n_answers_have_seeds_of_their_own_and_count_the_prompt_once(front: RunningFront) -> None:
    front.engine.script = lambda fields: [
        Part(text=str(json.loads(fields["sampling_parameters"])["seed"])),
        ended("stop"),
    ]
    answer = front.client().chat.completions.create(model="m2", messages=HELLO, n=3, seed=2**64 - 2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [str(2**64 - 2), str(2**64 - 1), "0"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 9)


def test_n_streams_interleave(front: RunningFront) -> None:
    stream = front.client().chat.completions.create(
        model="m2", messages=HELLO, n=3, stream=True, stream_options={"include_usage": True}
    )
    texts: dict[int, str] = {}
    ends: dict[int, str | None] = {}
    order, usage = [], None
    for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            order.append(choice.index)
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            ends[choice.index] = choice.finish_reason
    assert texts == {0: "Hello", 1: "Hello", 2: "Hello"}
    assert ends == {0: "stop", 1: "stop", 2: "stop"}
    assert order != sorted(order)
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 9)


def test_a_choice_that_begins_before_a_lower_one_is_understood_by_the_official_accumulator() -> None:
    """Which takes the choices of a stream to begin in their order."""
    head = Head("chatcmpl-", "chat.completion.chunk", "m2", None)
    state, chunks = ChatCompletionStreamState(), ChatChunks()
    for index in (2, 0, 1, 2, 0):
        for choice in chunks(index, Part(text=str(index))):
            list(state.handle_chunk(ChatCompletionChunk(**head.of([choice]))))
    for index in (1, 0, 2):
        for choice in chunks(index, ended("stop")):
            list(state.handle_chunk(ChatCompletionChunk(**head.of([choice]))))
    final = state.get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1, 2]
    assert [choice.message.content for choice in final.choices] == ["00", "1", "22"]
    assert {choice.message.role for choice in final.choices} == {"assistant"}


def test_one_of_n_that_fails_ends_the_others(front: RunningFront) -> None:
    def script(fields: dict[str, Any]) -> list[Any]:
        first = len(front.engine.asked) == 1
        return [None] if first else [RequestError("RESOURCE_EXHAUSTED", "too many")]

    front.engine.script = script
    with pytest.raises(openai.RateLimitError, match="too many"):
        front.client().chat.completions.create(model="m2", messages=HELLO, n=2)
    front.until_idle()


def test_a_failure_in_mid_stream_is_an_event_and_the_last(front: RunningFront) -> None:
    front.engine.script = lambda fields: [Part(text="so far"), RequestError("UNAVAILABLE", "the engine died")]
    stream = front.client().chat.completions.create(model="m2", messages=HELLO, stream=True)
    told: list[str] = []
    with pytest.raises(openai.APIError, match="the engine died") as error:
        told.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(told) == "so far"
    assert error.value.code == "service_unavailable"
    _, text, _ = front.ask("/v1/chat/completions", {"messages": HELLO, "stream": True})
    assert text.rstrip().endswith(
        'data: {"error":{"message":"the engine died","type":"server_error","param":null,"code":"service_unavailable"}}'
    )


def test_a_failure_before_the_first_part_of_a_stream_has_its_status(front: RunningFront) -> None:
    front.engine.script = lambda fields: [RequestError("INVALID_ARGUMENT", "messages[0].role is missing")]
    with pytest.raises(openai.BadRequestError) as error:
        front.client().chat.completions.create(model="m2", messages=HELLO, stream=True)
    assert error.value.param == "messages[0].role"


def test_the_async_client(front: RunningFront) -> None:
    async def ask() -> list[str | None]:
        url = f"http://127.0.0.1:{front.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            asked = [client.chat.completions.create(model="m2", messages=HELLO) for _ in range(20)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == ["Hello"] * 20


def test_extras_of_the_engine(front: RunningFront) -> None:
    extras = {
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, "stop_token_ids": [3],
        "bad_words": ["x"], "ignore_eos": True, "priority": -1, "detokenize": True,
        "chat_template_kwargs": {"a": 1}, "skip_reasoning": True, "structured_outputs": {"regex": "a"},
        "guided_decoding_guide_type": "regex", "guided_decoding_guide": "a+",
    }  # fmt: skip
    front.client().chat.completions.create(
        model="m2", messages=HELLO, temperature=0.5, top_p=0.9, max_completion_tokens=7, stop=["a", "b"],
        presence_penalty=0.1, frequency_penalty=0.2, logprobs=True, top_logprobs=4, user="me", store=False,
        metadata={"a": "b"}, response_format={"type": "json_object"}, extra_body=extras,
    )  # fmt: skip
    (asked,) = front.engine.asked
    assert json.loads(asked.pop("sampling_parameters")) == {
        "temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 7, "stop": ["a", "b"],
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "logprobs": 4, "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.1, "min_tokens": 2, "stop_token_ids": [3], "bad_words": ["x"],
        "ignore_eos": True, "priority": -1, "detokenize": True,
    }  # fmt: skip
    asked.pop("messages")
    assert asked == {
        "stream": False,
        "chat_template_kwargs": '{"a":1}',
        "skip_reasoning": True,
        "structured_outputs": '{"regex":"a"}',
        "guided_decoding_guide_type": "regex",
        "guided_decoding_guide": "a+",
        "response_format": '{"type":"json_object"}',
    }


@pytest.mark.parametrize(
    ("given", "skips"),
    [
        ({"reasoning_effort": "none"}, True),
        ({"reasoning_effort": "high"}, False),
        ({"reasoning_effort": "none", "skip_reasoning": False}, False),
        ({"skip_reasoning": True}, True),
    ],
)
def test_reasoning_effort(front: RunningFront, given: dict[str, Any], skips: bool) -> None:
    status, _, _ = front.ask("/v1/chat/completions", {"messages": HELLO, **given})
    assert status == 200
    assert front.engine.asked[0].get("skip_reasoning", False) is skips


@pytest.mark.parametrize("stop", ["[]", '["a"]', ["[1]"]])
def test_a_stop_string_that_looks_like_a_list_stays_one(front: RunningFront, stop: Any) -> None:
    from mm2c_runtime.options import parse_options

    front.ask("/v1/chat/completions", {"messages": HELLO, "stop": stop})
    options = parse_options(json.loads(front.engine.asked[0]["sampling_parameters"]))
    assert set(options.stop) == {stop if isinstance(stop, str) else stop[0]}
