from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from toy_engine import END, Listener, ToyExecutor, toy_engine, toy_tokenizer

from mm2c_runtime.errors import RequestError
from mm2c_runtime.requests import parse_request

MakeEngine = Callable[..., Any]


@pytest.fixture
def make() -> Iterator[MakeEngine]:
    engines = []

    def build(executor: ToyExecutor | None = None, **options: Any) -> Any:
        engines.append(toy_engine(executor or ToyExecutor(), **options))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def ids(text: str) -> list[int]:
    return list(toy_tokenizer().encode(text, add_special_tokens=False).ids)


def scripted(prompt: str, answer: str, **options: Any) -> ToyExecutor:
    return ToyExecutor(scripts={tuple(ids(prompt)): ids(answer)}, **options)


def ask(engine: Any, listener: Listener, request_id: str, prompt: str, **options: Any) -> None:
    engine.submit(request_id, parse_request({"text_input": prompt, "stream": True, **options}), listener)


def answer(engine: Any, prompt: str, **options: Any) -> tuple[str, list[int], dict[str, Any]]:
    listener = Listener()
    ask(engine, listener, "only", prompt, **options)
    end = listener.wait("only")
    return listener.text("only"), listener.tokens("only"), end


def test_scripted_answer_streams_and_stops_at_the_end_token(make: MakeEngine) -> None:
    engine, listener = make(scripted("say hé", "the café  in")), Listener()
    ask(engine, listener, "a", "say hé")
    end = listener.wait("a")
    assert listener.text("a") == "the café  in"
    assert listener.tokens("a") == [*ids("the café  in"), END]
    assert end["finish_reason"] == "stop"
    assert end["num_input_tokens"] == len(ids("say hé"))
    assert end["num_output_tokens"] == len(ids("the café  in")) + 1
    assert listener.events["a"][0]["type"] == "started"
    assert len(listener.deltas("a")) > 3


def test_without_stream_there_is_one_delta(make: MakeEngine) -> None:
    engine, listener = make(scripted("p", "the answer")), Listener()
    ask(engine, listener, "a", "p", stream=False)
    listener.wait("a")
    assert [event["text"] for event in listener.deltas("a")] == ["the answer"]


PROMPTS = [f"prompt {n} " + "xyz" * n for n in range(8)]


def together(engine: Any, order: list[int], **options: Any) -> dict[int, list[int]]:
    listener = Listener()
    for number in order:
        ask(engine, listener, str(number), PROMPTS[number], **{"max_tokens": 12 + number, **options})
    for number in order:
        assert listener.wait(str(number))["type"] == "finish"
    return {number: listener.tokens(str(number)) for number in order}


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 7, "repetition_penalty": 1.2}])
def test_eight_together_equal_the_same_alone(make: MakeEngine, options: dict[str, Any]) -> None:
    engine = make(ToyExecutor(delay=0.001))
    batched = together(engine, list(range(8)), **options)
    shuffled = together(engine, [5, 2, 7, 0, 3, 6, 1, 4], **options)
    alone = {number: together(engine, [number], **options)[number] for number in range(8)}
    assert batched == alone
    assert shuffled == alone
    assert engine.stats()["decode_steps_4_rows"] > 0


def test_more_requests_than_rows_all_end(make: MakeEngine) -> None:
    engine, listener = make(ToyExecutor(rows=3)), Listener()
    for number in range(20):
        ask(engine, listener, str(number), f"question {number}", max_tokens=5 + number % 7)
    for number in range(20):
        assert listener.wait(str(number))["finish_reason"] == "length"
        assert len(listener.tokens(str(number))) == 5 + number % 7
    assert engine.stats()["running"] == engine.stats()["waiting"] == 0


def test_cancel_mid_stream_frees_the_row_at_once(make: MakeEngine) -> None:
    engine, listener = make(ToyExecutor(rows=1, delay=0.005)), Listener()
    ask(engine, listener, "long", "p", max_tokens=100)
    ask(engine, listener, "next", "q", max_tokens=3)
    listener.wait("long", ("delta",))
    engine.cancel("long")
    assert listener.wait("long")["finish_reason"] == "cancelled"
    assert listener.wait("next")["finish_reason"] == "length"
    assert len(listener.tokens("long")) < 60
    engine.cancel("long")  # ended: nothing happens
    engine.cancel("never heard of")


def test_cancel_while_waiting(make: MakeEngine) -> None:
    engine, listener = make(ToyExecutor(rows=1, delay=0.005)), Listener()
    ask(engine, listener, "long", "p", max_tokens=60)
    ask(engine, listener, "queued", "q")
    engine.cancel("queued")
    assert listener.wait("queued")["num_output_tokens"] == 0
    assert listener.wait("long")["finish_reason"] == "length"


def test_timeout(make: MakeEngine) -> None:
    engine = make(ToyExecutor(delay=0.01))
    _, _, end = answer(engine, "p", timeout=0.08)
    assert end["code"] == "CANCELLED"
    assert "0.08 s" in end["message"]


def test_stop_string_across_tokens_cuts_the_text(make: MakeEngine) -> None:
    engine = make(scripted("p", "one two STOP three"))
    text, _, end = answer(engine, "p", stop=["STOP"])
    assert text == "one two "
    assert end["finish_reason"] == "stop"
    text, _, _ = answer(engine, "p", stop_words="two S")
    assert text == "one "


def test_stop_token_ids_ignore_eos_and_min_tokens(make: MakeEngine) -> None:
    engine = make(scripted("p", "abcdef"))
    assert answer(engine, "p", stop_token_ids=ids("c"))[0] == "ab"
    assert len(answer(engine, "p", ignore_eos=True, max_tokens=20)[1]) == 20
    _, tokens, _ = answer(engine, "p", min_tokens=10, max_tokens=20)
    assert len(tokens) >= 10
    assert END not in tokens[:9]


def test_bad_words_are_not_said(make: MakeEngine) -> None:
    engine = make(scripted("p", "abcd"))
    assert answer(engine, "p", max_tokens=4)[0] == "abcd"
    text, _, _ = answer(engine, "p", max_tokens=4, bad_words=["bc"])
    assert text.startswith("ab")
    assert "bc" not in text


def test_logprobs_and_echo(make: MakeEngine) -> None:
    engine, listener = make(scripted("p", "ab")), Listener()
    ask(engine, listener, "a", "p", logprobs=2, exclude_input_in_output=False)
    listener.wait("a")
    assert listener.text("a") == "pab"
    found = [entry for event in listener.deltas("a") for entry in event["logprobs"]]
    assert [entry["token"] for entry in found] == listener.tokens("a")
    assert all(len(entry["top"]) == 2 and entry["logprob"] <= 0 for entry in found)


def test_unseeded_requests_draw_a_seed_that_reproduces_them(make: MakeEngine) -> None:
    engine = make()
    _, tokens, end = answer(engine, "p", temperature=1.0, max_tokens=10)
    _, again, _ = answer(engine, "p", temperature=1.0, max_tokens=10, seed=end["seed"])
    _, other, _ = answer(engine, "p", temperature=1.0, max_tokens=10)
    assert tokens == again
    assert tokens != other


def test_a_failing_prefill_fails_its_request_only(make: MakeEngine) -> None:
    def explode(batch: Any) -> None:
        if batch.kind == "prefill" and batch.rows[0].tokens[0] == ids("!")[0]:
            raise RuntimeError("boom")

    engine, listener = make(ToyExecutor(delay=0.002, explode=explode)), Listener()
    ask(engine, listener, "good", "p", max_tokens=40)
    ask(engine, listener, "bad", "!", max_tokens=40)
    error = listener.wait("bad")
    assert error["code"] == "INTERNAL"
    assert "boom" in error["message"]
    assert listener.wait("good")["finish_reason"] == "length"
    assert answer(engine, "p", max_tokens=40)[1] == listener.tokens("good")


def test_a_lost_executor_fails_all_with_unavailable(make: MakeEngine) -> None:
    calls = []

    def explode(batch: Any) -> None:
        calls.append(batch)
        if len(calls) > 5:
            raise EOFError("rank 1 is gone")

    engine, listener = make(ToyExecutor(rows=1, delay=0.01, explode=explode)), Listener()
    ask(engine, listener, "a", "p", max_tokens=40)
    ask(engine, listener, "b", "q", max_tokens=40)
    assert listener.wait("a")["code"] == listener.wait("b")["code"] == "UNAVAILABLE"
    assert not engine.alive
    with pytest.raises(RequestError, match="UNAVAILABLE: the executor is gone: rank 1"):
        ask(engine, listener, "c", "p")


def test_refusals(make: MakeEngine) -> None:
    engine, listener = make(ToyExecutor(delay=0.01)), Listener()
    with pytest.raises(RequestError, match="has 500 tokens; the context holds 128"):
        ask(engine, listener, "a", "x" * 500)
    with pytest.raises(RequestError, match=r"max_tokens: 127 .* at most 126"):
        ask(engine, listener, "a", "xy", max_tokens=127)
    with pytest.raises(RequestError, match="end_id: 5000 is not in the vocabulary of 288"):
        ask(engine, listener, "a", "xy", end_id=5000)
    ask(engine, listener, "a", "xy")
    with pytest.raises(RequestError, match="already running"):
        ask(engine, listener, "a", "xy")


def test_default_max_tokens_fills_the_context(make: MakeEngine) -> None:
    _, tokens, end = answer(make(ToyExecutor(context=40)), "xy", ignore_eos=True)
    assert len(tokens) == 38
    assert end["finish_reason"] == "length"


def test_close_fails_what_is_in_flight_and_drain_waits(make: MakeEngine) -> None:
    engine, listener = make(ToyExecutor(delay=0.005)), Listener()
    ask(engine, listener, "a", "p", max_tokens=10)
    assert engine.drain(5)
    assert listener.wait("a")["type"] == "finish"
    with pytest.raises(RequestError, match="UNAVAILABLE"):
        ask(engine, listener, "b", "p")
    other = make(ToyExecutor(delay=0.005))
    ask(other, listener, "c", "p", max_tokens=100)
    time.sleep(0.05)
    other.close()
    assert listener.wait("c")["code"] == "UNAVAILABLE"
    other.close()


def test_a_full_queue_refuses(make: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm2c_runtime.engine.MAX_REQUESTS", 2)
    engine, listener = make(ToyExecutor(delay=0.01)), Listener()
    ask(engine, listener, "a", "p", max_tokens=30)
    ask(engine, listener, "b", "p", max_tokens=30)
    with pytest.raises(RequestError, match="RESOURCE_EXHAUSTED: 2 requests"):
        ask(engine, listener, "c", "p")
    assert listener.wait("a")["type"] == listener.wait("b")["type"] == "finish"
    ask(engine, listener, "c", "p", max_tokens=1)
    assert listener.wait("c")["type"] == "finish"


def test_a_failing_listener_hurts_nobody_else(make: MakeEngine) -> None:
    engine, listener = make(ToyExecutor(delay=0.001)), Listener()

    def broken(event: Any) -> None:
        raise OSError("client is gone")

    engine.submit("bad", parse_request({"text_input": "p", "stream": True}), broken)
    ask(engine, listener, "good", "q", max_tokens=20)
    assert listener.wait("good")["finish_reason"] == "length"
    assert engine.drain(5)


def test_overhead_is_measured(make: MakeEngine) -> None:
    engine = make()
    together(engine, list(range(8)))
    stats = engine.stats()
    assert stats["steps"] == stats["prefill_steps"] + stats["decode_steps"]
    assert sum(stats["rows_histogram"].values()) == stats["decode_steps"]
    assert stats["overhead_us"]["scheduler"] > 0
