"""The Triton models over gRPC and HTTP, with an engine that speaks at a known pace."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from served import Served, Stream

CENSUS = "how many requests?"  # the fake engine answers with the number that it runs
ASK = json.dumps([{"role": "user", "content": "Hello"}])
TOOLS = json.dumps([{"type": "function", "function": {"name": "get_weather"}}])


def test_grpc_streams_tokens_as_they_come(fake_server: Served) -> None:
    endless = fake_server.stream(text_input="t", max_tokens=100_000)  # 1,000 s
    assert [next(parts)["text_output"][:3] for parts in [iter(endless)]] == ["t0 "]
    endless.cancel()
    seen = list(fake_server.stream(text_input="t", max_tokens=50, return_token_ids=True))
    assert "".join(part["text_output"] for part in seen) == "".join(f"t{n} " for n in range(50))
    assert len(seen) > 1
    assert (seen[-1]["finish_reason"], seen[-1]["num_input_tokens"], seen[-1]["num_output_tokens"]) == (
        "length",
        3,
        50,
    )
    assert all("finish_reason" not in part for part in seen[:-1])


def test_generate_stream_streams_the_same(fake_server: Served) -> None:
    events = list(fake_server.generate_stream(text_input="t", max_tokens=20))
    assert "".join(event["text_output"] for event in events) == "".join(f"t{n} " for n in range(20))
    assert len(events) > 1
    assert events[-1]["finish_reason"] == "length"


def test_generate_answers_once(fake_server: Served) -> None:
    answer = fake_server.generate(text_input="t", max_tokens=3)
    assert (answer["text_output"], answer["finish_reason"], answer["num_output_tokens"]) == (
        "t0 t1 t2 ",
        "length",
        3,
    )


def test_messages_give_reasoning_and_tool_call_deltas(fake_server: Served) -> None:
    whole = fake_server.stream(messages=ASK, tools=TOOLS).whole()
    assert (whole.reasoning, whole.text, whole.last["finish_reason"]) == ("I think.", "", "tool_calls")
    assert whole.tool_calls[0]["id"] == "call_0"
    assert whole.tool_calls[0]["function"]["name"] == "get_weather"
    arguments = "".join(delta["function"]["arguments"] for delta in whole.tool_calls)
    assert json.loads(arguments) == {"city": "Oslo"}


def test_without_streaming_tool_calls_are_whole(fake_server: Served) -> None:
    answer = fake_server.generate(messages=ASK, tools=TOOLS)
    (call,) = json.loads(answer["tool_calls"])
    assert call["function"] == {"name": "get_weather", "arguments": '{"city":"Oslo"}'}
    assert "index" not in call


def test_unary_infer_reaches_the_same_engine(fake_server: Served) -> None:
    out = fake_server.infer("minimax_m2_unary", text_input="u", max_tokens=3, temperature=0.5)
    assert out["text_output"][0] == b"u0 u1 u2 "
    assert out["finish_reason"][0] == b"length"
    assert out["num_output_tokens"].tolist() == [3]


def test_unary_requests_run_together(fake_server: Served) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(_unary, fake_server, n) for n in range(8)]
        together = 0
        while together < 8 and not any(answer.done() for answer in answers):
            census = fake_server.generate(text_input=CENSUS, max_tokens=1)["text_output"]
            together = max(together, int(census.split("#")[1]))
    assert [answer.result() for answer in answers] == [
        "".join(f"{n}:{k} " for k in range(300)).encode() for n in range(8)
    ]
    assert together == 8


def _unary(server: Served, n: int) -> bytes:
    return bytes(server.infer("minimax_m2_unary", text_input=f"{n}:", max_tokens=300)["text_output"][0])


def test_eight_streams_do_not_mix(fake_server: Served) -> None:
    streams = [fake_server.stream(text_input=f"s{n}-", max_tokens=30) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda stream: stream.whole().text, streams))
    assert texts == ["".join(f"s{n}-{k} " for k in range(30)) for n in range(8)]


def test_only_requested_outputs_are_sent(fake_server: Served) -> None:
    fields = {"text_input": "t", "max_tokens": 3, "stream": True}
    parts = list(Stream(fake_server.grpc, fields, outputs=("text_output",)))
    assert {name for part in parts for name in part} == {"text_output"}


def test_return_flags_hide_and_show(fake_server: Served) -> None:
    parts = list(
        fake_server.stream(text_input="t", max_tokens=4, return_finish_reason=False, return_token_ids=True)
    )
    assert all("finish_reason" not in part for part in parts)
    assert [id for part in parts for id in part["token_ids"]] == [0, 1, 2, 3]


def test_parse_model_splits_text(fake_server: Served) -> None:
    out = fake_server.infer(
        "minimax_m2_parse", text=["hm</think>Hello", "plain"], starts_in_reasoning=[True, False]
    )
    assert out["reasoning"].tolist() == [b"hm", b""]
    assert out["content"].tolist() == [b"Hello", b"plain"]
    assert out["tool_calls"].tolist() == [b"[]", b"[]"]


def test_parse_model_reads_typed_arguments(fake_server: Served) -> None:
    parameters = {"type": "object", "properties": {"days": {"type": "integer"}}}
    tools = json.dumps([{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    call = '<invoke name="f"><parameter name="days">3</parameter></invoke>'
    text = f"<minimax:tool_call>{call}</minimax:tool_call>"
    out = fake_server.infer("minimax_m2_parse", text=text, tools=tools, starts_in_reasoning=False)
    (call,) = json.loads(out["tool_calls"][0])
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("f", {"days": 3})


def test_every_input_is_declared_as_the_stub_reads_it(fake_server: Served) -> None:
    """One request with every tensor: Triton checks names, types and shapes against config.pbtxt."""
    fields = {
        "text_input": "t", "max_tokens": 2, "min_length": 0, "temperature": 0.7, "top_k": 5, "top_p": 0.9,
        "min_p": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1,
        "random_seed": 2**63, "stop_words": ["x", "y"], "stop_token_ids": [1, 2], "bad_words": ["z"],
        "end_id": 7, "pad_id": 0, "ignore_eos": True, "beam_width": 1, "length_penalty": 1.0, "logprobs": 0,
        "parse": False, "sampling_parameters": "{}", "exclude_input_in_output": True,
        "return_num_input_tokens": True,
    }  # fmt: skip
    assert fake_server.stream(**fields).whole().text == "t0 t1 "


@pytest.mark.parametrize("value", [np.float32(0.1), np.float32(0.7), np.float32(1e-3)])
def test_decimals_survive_single_precision(value: np.float32) -> None:
    from mm2c_runtime.stub.options import Option
    from mm2c_runtime.stub.request import _value

    assert _value("temperature", Option("TYPE_FP32"), np.array([value])) == float(str(value))
