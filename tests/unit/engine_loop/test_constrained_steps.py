"""Masks beside the step: computed while the model runs, failing alone, forgotten with their request."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from toy_engine import VOCAB, Listener, ToyExecutor, toy_engine

from mm2c_runtime.errors import RequestError
from mm2c_runtime.requests import parse_request
from mm2c_runtime.step import StepBatch

REGEX = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "[a-c]+"}


class Matcher:
    """Allows everything; ``act`` runs before every mask and may raise."""

    is_accepting = is_stopped = False
    ends: frozenset[int] = frozenset()

    def __init__(self, act: Any) -> None:
        self._act = act

    def bitmask(self) -> Any:
        self._act()
        return np.full(VOCAB // 32, -1, np.int32)

    def advance(self, token: int) -> None:
        return


def with_matcher(engine: Any, act: Any) -> None:
    """Requests with a constraint get a ``Matcher``."""
    engine.preparer._grammars.matcher = lambda constraint, **_: Matcher(act)


def test_the_model_runs_while_the_mask_is_computed() -> None:
    ran = threading.Event()
    masked: list[bool] = []

    class Slow(ToyExecutor):
        def forward(self, batch: StepBatch) -> Any:
            logits = super().forward(batch)
            ran.set()
            return logits

    def mask() -> None:  # the first mask comes only after the model has run: waiting for it before would hang
        masked.append(ran.wait(10))

    engine, listener = toy_engine(Slow()), Listener()
    with_matcher(engine, mask)
    engine.submit("a", parse_request({"text_input": "p", "max_tokens": 4, **REGEX}), listener)
    assert listener.wait("a")["finish_reason"] == "length"
    assert masked == [True] * 4
    engine.close()


def test_a_grammar_that_cannot_be_followed_ends_its_request_alone() -> None:
    engine, listener = toy_engine(ToyExecutor()), Listener()
    count = iter(range(100))

    def mask() -> None:
        if next(count) == 3:
            raise RequestError("RESOURCE_EXHAUSTED", "the grammar is too complex")

    with_matcher(engine, mask)
    engine.submit("free", parse_request({"text_input": "other", "max_tokens": 30}), listener)
    engine.submit("bound", parse_request({"text_input": "p", "max_tokens": 30, **REGEX}), listener)
    failed = listener.wait("bound")
    assert (failed["code"], failed["message"]) == ("RESOURCE_EXHAUSTED", "the grammar is too complex")
    assert listener.wait("free")["type"] == "finish"
    engine.close()


@pytest.mark.parametrize("how", ["cancel", "timeout", "a failing step"])
def test_a_request_that_ends_while_its_mask_is_computed(how: str) -> None:
    computing, go_on = threading.Event(), threading.Event()

    def mask() -> None:
        computing.set()
        assert go_on.wait(20)

    def explode(batch: StepBatch) -> None:
        if how == "a failing step" and not go_on.is_set():
            assert computing.wait(20)
            raise ValueError("the model broke")

    engine, listener = toy_engine(ToyExecutor(explode=explode)), Listener()
    grammars = engine.preparer._grammars.matcher
    with_matcher(engine, mask)
    fields: dict[str, Any] = {"text_input": "p", "max_tokens": 100, "stream": True, **REGEX}
    timeout = 0.2 if how == "timeout" else None
    engine.submit("a", parse_request({**fields, "timeout": timeout}), listener)
    if how == "cancel":
        assert computing.wait(20)
        engine.cancel("a")
    elif how == "timeout":
        time.sleep(0.2)
    else:
        assert "the model broke" in listener.wait("a")["message"]
    go_on.set()
    end = listener.wait("a")
    assert end.get("finish_reason") == "cancelled" if how == "cancel" else end["type"] == "error"
    assert len(listener.tokens("a")) < 3
    engine.preparer._grammars.matcher = grammars  # type: ignore[method-assign]
    engine.submit("b", parse_request({**fields, "max_tokens": 3}), listener)
    assert listener.wait("b")["type"] == "finish"
    engine.close()


def test_eight_grammars_in_one_batch_do_not_see_each_other() -> None:
    everybody = threading.Event()
    executor = ToyExecutor(explode=lambda batch: everybody.wait(10))
    engine, listener = toy_engine(executor), Listener()
    for number in range(8):
        letter = "abcdefgh"[number]
        guide = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": f"{letter}{{20,40}}"}
        fields = {"text_input": f"p{number}", "max_tokens": 60, "temperature": 1.0, "seed": number, **guide}
        engine.submit(letter, parse_request(fields), listener)
    everybody.set()
    for letter in "abcdefgh":
        assert listener.wait(letter)["finish_reason"] == "stop"
        assert set(listener.text(letter)) == {letter}
        assert 20 <= len(listener.text(letter)) <= 40
    assert engine.stats()["rows_histogram"].get("8", 0) > 0
    engine.close()


def test_an_engine_that_cannot_constrain_says_so_and_serves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    import mm2c_runtime.grammar.matcher as matcher

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("no such tokenizer")

    monkeypatch.setattr(matcher, "GrammarFactory", broken)
    engine, listener = toy_engine(ToyExecutor()), Listener()
    with pytest.raises(RequestError, match="cannot constrain answers: ValueError: no such tokenizer"):
        engine.submit("a", parse_request({"text_input": "p", **REGEX}), listener)
    engine.submit("b", parse_request({"text_input": "p", "max_tokens": 3}), listener)
    assert listener.wait("b")["type"] == "finish"
    engine.close()
