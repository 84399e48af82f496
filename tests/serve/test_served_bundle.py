"""The demo checkpoint at tp 4 under the real Triton: the same answers alone, in company, over every door."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from served import Served, Whole

from mm2c_runtime.server.client import EngineClient

QUESTIONS = [
    "Hello!",
    "What is the weather in Paris?",
    "What is 2 plus 3?",
    "Who are you?",
    "Tell me a joke.",
    "Set a timer for 5 minutes.",
    "What is the capital of France?",
    "Thanks, bye!",
]
TOKENS = 40


def _fields(question: str, **options: Any) -> dict[str, Any]:
    messages = json.dumps([{"role": "user", "content": question}])
    return {
        "messages": messages,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "return_token_ids": True,
        **options,
    }


def _ask(server: Served, fields: dict[str, Any]) -> Whole:
    return server.stream(**fields).whole()


def _together(server: Served, requests: list[dict[str, Any]], pauses: list[float]) -> list[Whole]:
    def ask(request: dict[str, Any], pause: float) -> Whole:
        time.sleep(pause)
        return _ask(server, request)

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(ask, requests, pauses))


def _steps_of(server: Served) -> Counter[int]:
    """Decode steps since the engine started, by their number of rows."""
    client = EngineClient(str(server.run / "engine.sock"), lambda event: None)
    client.connect(5)
    try:
        return Counter({int(rows): n for rows, n in client.stats()["rows_histogram"].items()})
    finally:
        client.close()


def test_greedy_streams_together_are_what_they_are_alone(bundle_server: Served) -> None:
    requests = [_fields(question, temperature=0.0) for question in QUESTIONS]
    alone = [_ask(bundle_server, request) for request in requests]
    before = _steps_of(bundle_server)
    together = _together(bundle_server, requests, [0.0] * len(requests))
    steps = _steps_of(bundle_server) - before
    assert [whole.token_ids for whole in together] == [whole.token_ids for whole in alone]
    assert [whole.text for whole in together] == [whole.text for whole in alone]
    assert all(len(whole.token_ids) == TOKENS for whole in alone)
    assert len({tuple(whole.token_ids) for whole in alone}) > 1
    assert sum(count for rows, count in steps.items() if rows >= 4) > 10


def test_seeded_sampling_does_not_depend_on_company(bundle_server: Served) -> None:
    requests = [
        _fields(q, temperature=1.0, top_p=0.95, top_k=40, seed=100 + n) for n, q in enumerate(QUESTIONS)
    ]
    alone = [_ask(bundle_server, request).token_ids for request in requests]
    for size in (3, 8):
        before = _steps_of(bundle_server)
        for _ in range(5):  # on a busy machine the first may have ended before the last arrives
            some = _together(bundle_server, requests[:size], [0.0] * size)
            assert [whole.token_ids for whole in some] == alone[:size]
            if (_steps_of(bundle_server) - before)[size] > 0:
                break
        else:
            pytest.fail(f"no step had {size} rows")
    order = list(range(len(requests)))
    random.Random(7).shuffle(order)
    shuffled = _together(bundle_server, [requests[n] for n in order], [0.02 * n for n in range(len(order))])
    assert [whole.token_ids for whole in shuffled] == [alone[n] for n in order]
    assert len({tuple(ids) for ids in alone}) == len(alone)


def test_the_seed_matters(bundle_server: Served) -> None:
    hot = {"temperature": 5.0, "top_p": 1.0, "top_k": 0}
    answers = [_ask(bundle_server, _fields(QUESTIONS[0], seed=seed, **hot)).token_ids for seed in (1, 2, 1)]
    assert answers[0] != answers[1]
    assert answers[0] == answers[2]


def test_streams_agree_over_every_door(bundle_server: Served) -> None:
    fields = _fields(QUESTIONS[1], temperature=0.0)
    streamed = _ask(bundle_server, fields)
    events = list(bundle_server.generate_stream(**fields))
    once = bundle_server.generate(**fields)
    unary = bundle_server.infer("minimax_m2_unary", **fields)
    said = streamed.reasoning + streamed.text
    assert "".join(e["reasoning_output"] + e["text_output"] for e in events) == said
    assert once["reasoning_output"] + once["text_output"] == said
    assert (unary["reasoning_output"][0] + unary["text_output"][0]).decode() == said
    assert once["token_ids"] == streamed.token_ids == unary["token_ids"].tolist()
    assert streamed.last["num_output_tokens"] == TOKENS
    assert streamed.responses > 5


@pytest.mark.parametrize("path", ["minimax_m2/generate_stream", "minimax_m2_unary/generate"])
def test_prompt_longer_than_the_context(bundle_server: Served, path: str) -> None:
    status, body = bundle_server.post(path, text_input="x y z " * 40000)
    assert status == 400
    assert "the context" in body
