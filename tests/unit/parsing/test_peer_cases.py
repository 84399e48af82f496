"""The peers' published parser tests, as completions of our own: structure is theirs, text and expectation are ours.

| peer | cases | where we differ on purpose |
|---|---|---|
| vLLM, Python parsers | 26 | unknown tools, text after a call are kept; undeclared JSON is JSON; `</parameter>` ends |
| vLLM, Rust parser | 17 | nothing is an error; only the block's own newline goes |
| reasoning (vLLM, SGLang, TensorRT-LLM, Dynamo, smg) | 21 | no append-think; `</think>` owns its newlines |
| SGLang | 35 | strings are not trimmed; unknown tools are kept; a cut call is no content |
| smg (SGLang's router) | 25 | entities and Python's `True` stay text; text after a call is kept |
| MAX | 36 | an empty block is no error; strings are not trimmed; what follows a block is content |
| TensorRT-LLM | 14 | content is not trimmed |
| NVIDIA Dynamo | 29 | an invoke outside a block is text; what is no invoke in a block is content |
| llama.cpp | 9 | trailing newlines are kept |
| mlx-lm, mlx-openai-server | 8 | nowhere |
| xgrammar | 4 | names are free; without any `</parameter>`, `</invoke>` ends a value |
| MiniMax's guide | 5 | a declared string may say null; `1` is no truth value |

The reason stands with every case that differs (``Case.differs``); each case names the tests it stands for.
"""

from __future__ import annotations

import random
import re

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
    table = [int(count) for count in re.findall(r"\| (\d+) \|", __doc__ or "")]
    assert table == [len(module.CASES) for module in PEERS]
    for module in PEERS:
        assert len({case.id for case in module.CASES}) == len(module.CASES)
        assert all(case.test for case in module.CASES)
