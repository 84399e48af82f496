"""The peers' published parser tests, as completions of our own: structure is theirs, text and expectation are ours.

| peer | cases | where we differ on purpose |
|---|---|---|
{TABLE}
The reason stands with every case that differs (``Case.differs``); each case names the tests it stands for.
"""

from __future__ import annotations

import random

import pytest
from completions import arguments, assert_same, chunks, stream
from peer_cases import (
    dynamo,
    llama_cpp,
    minimax_guide,
    mlx,
    modular,
    reasoning,
    sglang,
    smg,
    tensorrt_llm,
    vllm_rust,
    vllm_tools,
    xgrammar,
)
from peer_cases.case import Case

from mm2c_runtime.parsing import parse_message

PEERS = (
    vllm_tools,
    vllm_rust,
    reasoning,
    sglang,
    smg,
    modular,
    tensorrt_llm,
    dynamo,
    llama_cpp,
    mlx,
    xgrammar,
    minimax_guide,
)
CASES = [
    pytest.param(case, id=f"{module.__name__.removeprefix('peer_cases.')}: {case.id}")
    for module in PEERS
    for case in module.CASES
]


@pytest.mark.parametrize("case", CASES)
def test_a_published_case(case: Case) -> None:
    options = {"starts_in_reasoning": case.starts_in_reasoning}
    message = parse_message(case.text, case.tools, **options)
    assert (message.reasoning, message.content) == (case.reasoning, case.content)
    assert arguments(message) == case.calls
    assert message.incomplete == case.incomplete
    draw = random.Random(case.id)
    splits = [[1], [4], *([draw.randint(1, 12) for _ in range(20)] for _ in range(4))]
    pieces = [[case.text], *(chunks(case.text, sizes) for sizes in splits)]
    for split in [*pieces, *([case.pieces] if case.pieces else [])]:
        assert "".join(split) == case.text
        assert_same(stream(split, case.tools, **options), message)


def test_every_case_says_what_it_stands_for() -> None:
    for module in PEERS:
        assert len({case.id for case in module.CASES}) == len(module.CASES)
        assert all(case.test for case in module.CASES)
