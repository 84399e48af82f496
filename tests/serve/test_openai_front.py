"""The OpenAI front over a real Triton, asked by the official client; the engine behind it is a fake one."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from served import Served

CENSUS = "how many requests?"  # the fake engine answers with the number that it holds
WEATHER: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture
def client(fake_server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=fake_server.openai, api_key="none", max_retries=0) as made:
        yield made


def _says(text: str) -> Any:
    return [{"role": "user", "content": text}]


def _running(server: Served) -> int:
    return int(server.stream(text_input=CENSUS, max_tokens=1).whole().text.split("#")[1])


def _until_idle(server: Served) -> None:
    """Of answers that would take 1,000 s."""
    began = time.monotonic()
    while _running(server):
        assert time.monotonic() - began < 20, "the engine still works for a client that is gone"


def test_a_whole_tool_round_trip(client: openai.OpenAI) -> None:
    messages = _says("The weather in Oslo?")
    answer = client.chat.completions.create(model="fake", messages=messages, tools=WEATHER)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.reasoning_content == "I think."  # type: ignore[attr-defined]
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
    # the message goes back as the client has it: an object with fields of its own, some of them null
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    answer = client.chat.completions.create(model="fake", messages=messages, tools=WEATHER)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello there", "stop")


def test_a_streamed_answer_is_the_whole_one(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="fake", messages=_says("Weather?"), tools=WEATHER) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.tool_calls is not None
    function = final.choices[0].message.tool_calls[0].function
    assert (function.name, function.arguments) == ("weather", '{"city":"Oslo"}')


def test_what_the_engine_is_sent(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=_says("show"), temperature=0.7, seed=-1, stop="x", max_tokens=9, n=2,
        extra_body={"top_k": 3, "priority": -5},
    )  # fmt: skip
    shown = [json.loads(choice.message.content or "") for choice in answer.choices]
    options = [json.loads(one["sampling_parameters"]) for one in shown]
    common = {"temperature": 0.7, "stop": "x", "max_tokens": 9, "top_k": 3, "priority": -5}
    assert options == [{**common, "seed": 2**64 - 1}, {**common, "seed": 0}]


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=_says("count"), max_tokens=2, logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert [entry.token for entry in entries] == ["n0 ", "n1 "]
    assert [entry.top_logprobs[0].model_dump() for entry in entries] == [
        {"token": "a", "bytes": [97], "logprob": -1.0}
    ] * 2
    stream = client.chat.completions.create(
        model="fake", messages=_says("count"), max_tokens=2, logprobs=True, stream=True
    )
    logprobs = [chunk.choices[0].logprobs for chunk in stream]
    assert [one.token for part in logprobs if part for one in part.content or ()] == ["n0 ", "n1 "]


def test_raw_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt=["a", "b"], n=2, max_tokens=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["aa0 a1 "] * 2 + ["bb0 b1 "] * 2
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 8)


def test_refusals_of_the_engine_and_of_the_front(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="it must be at least 0") as error:
        client.chat.completions.create(model="fake", messages=_says("x"), temperature=-1)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="must be one of system"):
        client.chat.completions.create(model="fake", messages=[{"role": "wizard"}], stream=True)  # type: ignore
    with pytest.raises(openai.BadRequestError, match='did you mean "temperature"'):
        client.chat.completions.create(model="fake", messages=_says("x"), extra_body={"temperatur": 1})
    with pytest.raises(openai.NotFoundError, match="served here: fake"):
        client.chat.completions.create(model="gpt", messages=_says("x"))


@pytest.mark.parametrize(
    ("code", "status"),
    [("UNAVAILABLE", 503), ("CANCELLED", 504), ("INTERNAL", 500), ("RESOURCE_EXHAUSTED", 429)],
)
def test_failures_in_mid_answer(client: openai.OpenAI, code: str, status: int) -> None:
    with pytest.raises(openai.APIStatusError) as whole:
        client.chat.completions.create(model="fake", messages=_says(f"fail {code}"))
    assert whole.value.status_code == status
    told: list[str] = []
    stream = client.chat.completions.create(model="fake", messages=_says(f"fail {code}"), stream=True)
    with pytest.raises(openai.APIError) as error:
        told.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(told) == "so far"
    assert error.value.code == whole.value.code


def test_leaving_a_stream_frees_the_slots_at_once(client: openai.OpenAI, fake_server: Served) -> None:
    stream = client.chat.completions.create(
        model="fake", messages=_says("count"), max_tokens=100_000, n=2, stream=True
    )
    for chunk in stream:
        if "n3" in (chunk.choices[0].delta.content or ""):
            break
    assert _running(fake_server) == 2
    stream.close()
    _until_idle(fake_server)


def test_leaving_while_waiting_for_a_whole_answer_does_too(fake_server: Served) -> None:
    body = json.dumps({"messages": _says("count"), "max_tokens": 100_000}).encode()
    address = urlsplit(fake_server.openai)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        end = time.monotonic() + 20
        while _running(fake_server) == 0:
            assert time.monotonic() < end
    _until_idle(fake_server)


def test_cancelling_a_task_of_the_async_client_does_too(fake_server: Served) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=fake_server.openai, api_key="none") as client:
            create = client.chat.completions.create
            task = asyncio.create_task(create(model="fake", messages=_says("count"), max_tokens=100_000))
            while await asyncio.to_thread(_running, fake_server) == 0:
                pass
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(ask())
    _until_idle(fake_server)


def test_many_at_a_time(fake_server: Served) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=fake_server.openai, api_key="none") as client:
            asked = [
                client.chat.completions.create(model="fake", messages=_says("count"), max_tokens=5)
                for _ in range(32)
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == ["n0 n1 n2 n3 n4 "] * 32


def test_health_metrics_and_models(client: openai.OpenAI, fake_server: Served) -> None:
    root = fake_server.openai.removesuffix("/v1")
    assert urllib.request.urlopen(f"{root}/health", timeout=5).status == 200
    metrics = urllib.request.urlopen(f"{root}/metrics", timeout=5).read().decode()
    assert 'nv_inference_request_success{model="minimax_m2"' in metrics
    assert [model.id for model in client.models.list()] == ["fake"]
