"""The demo checkpoint's bundle behind the OpenAI front, asked by the official client."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from served import Served

from mm2c_runtime.server.client import EngineClient

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures" / "train_tiny"))
from tools import TOOLS as DEMO_TOOLS  # those that the checkpoint was trained with

TOOLS: Any = list(DEMO_TOOLS.values())
BERGEN = "Give me a 3 day forecast for Bergen in fahrenheit."
SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
    },
    "required": ["mood", "score"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(bundle_server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=bundle_server.openai, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def _says(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_a_tool_round_trip(client: openai.OpenAI, model: str) -> None:
    messages = _says(BERGEN)
    answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, temperature=0)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning_content  # type: ignore[attr-defined]
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Bergen", "unit": "fahrenheit", "days": 3}
    weather = json.dumps({"city": "Bergen", "temperature": 48, "sky": "rainy"})
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": weather}]
    answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert "48 degrees" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("named", [False, True])
def test_a_call_that_is_demanded(client: openai.OpenAI, model: str, named: bool) -> None:
    choice: Any = {"type": "function", "function": {"name": "calculator"}} if named else "required"
    answer = client.chat.completions.create(
        model=model, messages=_says("Tell me a joke."), tools=TOOLS, tool_choice=choice, parallel_tool_calls=False,
        seed=1, max_tokens=300,
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert answer.choices[0].message.tool_calls is not None
    (call,) = answer.choices[0].message.tool_calls
    assert call.type == "function"
    assert call.function.name == "calculator" if named else call.function.name in DEMO_TOOLS
    required = DEMO_TOOLS[call.function.name]["function"]["parameters"]["required"]
    assert set(required) <= set(json.loads(call.function.arguments))


def test_an_answer_of_a_schema(client: openai.OpenAI, model: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}
    for extra in ({"reasoning_effort": "none"}, {}):
        answer = client.chat.completions.create(
            model=model, messages=_says("How was it?"), response_format=form, temperature=0, extra_body=extra
        )
        value = json.loads(answer.choices[0].message.content or "")
        assert value["mood"] in ("good", "bad")
        assert 0 <= value["score"] <= 10
        reasoning = answer.choices[0].message.reasoning_content  # type: ignore[attr-defined]
        assert (reasoning is None) == bool(extra)


@pytest.mark.parametrize("question", [BERGEN, "What is the capital of France?"])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, model: str, question: str) -> None:
    asked: Any = dict(model=model, messages=_says(question), tools=TOOLS, seed=11, temperature=0.8, n=2)
    whole = client.chat.completions.create(**asked)
    reasoning, texts, calls = ["", ""], ["", ""], [{}, {}]
    ends: list[str | None] = [None, None]
    counts = None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        counts = chunk.usage
        for choice in chunk.choices:
            delta = choice.delta
            reasoning[choice.index] += getattr(delta, "reasoning_content", None) or ""
            texts[choice.index] += delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
            for call in delta.tool_calls or ():
                if call.id is not None:
                    calls[choice.index][call.index] = [call.function.name, ""]
                calls[choice.index][call.index][1] += call.function.arguments or ""
    assert counts == whole.usage
    for i, choice in enumerate(whole.choices):
        said = choice.message
        assert (said.reasoning_content or "") == reasoning[i]
        assert (said.content or "") == texts[i]
        assert choice.finish_reason == ends[i]
        made = [[one.function.name, json.loads(one.function.arguments)] for one in said.tool_calls or ()]
        assert made == [[name, json.loads(text)] for name, text in calls[i].values()]


def test_log_probabilities_are_the_model_s(client: openai.OpenAI, bundle_server: Served, model: str) -> None:
    messages = _says("What is the capital of France?")
    answer = client.chat.completions.create(
        model=model, messages=messages, temperature=0, logprobs=True, top_logprobs=20
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert answer.usage is not None
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        assert entry.top_logprobs[0].token == entry.token  # greedy took the most probable
        assert entry.logprob == max(one.logprob for one in entry.top_logprobs)
        assert 0 < math.fsum(math.exp(one.logprob) for one in entry.top_logprobs) <= 1 + 1e-6
    text = b"".join(bytes(entry.bytes or ()) for entry in entries).decode()
    assert choice.message.reasoning_content.strip() in text  # type: ignore[attr-defined]
    assert (choice.message.content or "").strip() in text
    # the same tokens, of the same probability, as Triton gives them
    direct = bundle_server.stream(messages=json.dumps(messages), temperature=0.0, logprobs=20)
    given = [one for part in direct for one in json.loads(part.get("logprobs", "[]"))]
    assert [one["bytes"] for one in given] == [entry.bytes or [] for entry in entries]
    assert [one["logprob"] for one in given] == pytest.approx([entry.logprob for entry in entries], abs=1e-4)


def test_log_probabilities_of_a_raw_prompt(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt="The capital of", max_tokens=5, temperature=0, logprobs=3
    )
    given = answer.choices[0].logprobs
    assert given is not None
    assert given.tokens is not None
    assert given.text_offset is not None
    assert "".join(given.tokens) == answer.choices[0].text
    assert given.text_offset == [len("".join(given.tokens[:n])) for n in range(5)]
    assert all(len(one) == 3 for one in given.top_logprobs or ())


def test_stop_length_and_seed(client: openai.OpenAI, model: str) -> None:
    asked: Any = dict(model=model, messages=_says("What is the capital of France?"))
    whole = client.chat.completions.create(**asked, temperature=0).choices[0]
    assert (whole.message.content or "").endswith("Paris.")
    stopped = client.chat.completions.create(**asked, temperature=0, stop=["Paris"]).choices[0]
    assert (stopped.message.content or "").endswith("The capital of France is ")
    assert stopped.finish_reason == "stop"
    cut = client.chat.completions.create(**asked, temperature=0, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 2
    hot = [
        client.chat.completions.create(
            **asked, temperature=5, top_p=1, seed=seed, max_tokens=40, extra_body={"top_k": 0}
        )
        for seed in (5, 5, 6)
    ]
    first, same, other = (one.choices[0].message.model_dump() for one in hot)
    assert first == same != other


def test_what_the_engine_refuses(client: openai.OpenAI, model: str) -> None:
    def refused(**options: Any) -> openai.BadRequestError:
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model=model, messages=_says("x"), **options)
        return error.value

    assert refused(tools=TOOLS, tool_choice="no_such_tool").param == "tool_choice"
    assert refused(tool_choice="required").status_code == 400
    assert refused(response_format={"type": "yaml"}).param == "response_format.type"
    assert refused(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}])
    assert refused(temperature=-1).param == "temperature"
    assert refused(max_tokens=5000).code == "context_length_exceeded"
    assert refused(extra_body={"structured_outputs": {"regex": "(a"}}).status_code == 400


def test_the_official_accumulator_takes_several_choices(client: openai.OpenAI, model: str) -> None:
    asked: Any = dict(model=model, messages=_says(BERGEN), tools=TOOLS, seed=3, n=3)
    whole = client.chat.completions.create(**asked, logprobs=True)
    with client.chat.completions.stream(**asked, logprobs=True) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1, 2]
    for told, choice in zip(final.choices, whole.choices, strict=True):
        assert told.finish_reason == choice.finish_reason
        assert (told.message.content or "") == (choice.message.content or "")
        assert told.logprobs is not None
        assert choice.logprobs is not None
        assert [one.token for one in told.logprobs.content or ()] == [
            one.token for one in choice.logprobs.content or ()
        ]


def test_leaving_a_stream_frees_its_rows_at_once(
    client: openai.OpenAI, bundle_server: Served, model: str
) -> None:
    """Rows that ignore their end would go on to the end of the context."""
    rows, context = 8, 1024
    engine = EngineClient(str(bundle_server.run / "engine.sock"), lambda event: None)
    engine.connect(10)
    try:
        before = engine.stats()["generated_tokens"]
        stream = client.chat.completions.create(
            model=model, messages=_says("Hello!"), stream=True, extra_body={"ignore_eos": True}, n=rows
        )
        next(iter(stream))
        stream.close()
        end = time.monotonic() + 30
        while (stats := engine.stats())["running"] + stats["waiting"]:
            assert time.monotonic() < end
        assert stats["generated_tokens"] - before < rows * context / 4
    finally:
        engine.close()
