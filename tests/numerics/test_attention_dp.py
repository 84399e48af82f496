"""Attention-DP: groups of ranks, each with requests of its own, that share the experts. Uneven and empty groups give
what one rank alone gives, from the CPU engine's executor and from the loop around it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm2c.pipeline import BuildRequest, build_bundle
from mm2c.verify.logits import TOLERANCE
from mm2c_runtime.bundle import Bundle
from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.step import RowStep, SamplingParams, StepBatch

SIZES = {"context": 256, "max_rows": 6, "prefill_chunk": 48}
LAYOUTS = [{"dp": 2, "ep": 2}, {"dp": 4, "ep": 4}, {"tp": 2, "dp": 4, "ep": 4}]
GREEDY = SamplingParams(temperature=0.0)
PROMPTS = [[5, 90, 17, 33, 260, 8, 41], [44, 7, 500, 2], list(range(9, 60)), [1, 2, 3], [77] * 12]
OWNERS = [0, 0, 1, 0, 1]  # groups, uneven; a third and a fourth one have nothing to do
STEPS = 4
pytestmark = pytest.mark.usefixtures("one_thread")


def layout_name(layout: dict[str, int]) -> str:
    return "-".join(f"{name}{size}" for name, size in layout.items())


@pytest.fixture(scope="module", params=LAYOUTS, ids=layout_name)
def bundle(request: pytest.FixtureRequest, tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("attention-dp") / "bundle"
    build_bundle(
        BuildRequest(
            source=str(tiny_m2), output=output, engine="onnxruntime", cache=False, **SIZES, **request.param
        )
    )
    return output


def chunk(row: int, tokens: list[int], past: int = 0) -> StepBatch:
    step = RowStep(row, tokens, past, len(tokens), sample=True, sampling=None if past else GREEDY)
    return StepBatch(past, "prefill", [step])


def decode(number: int, rows: list[tuple[int, int]]) -> StepBatch:
    """Rows of (token, past)."""
    return StepBatch(
        number, "decode", [RowStep(n, [token], past, 1, sample=True) for n, (token, past) in enumerate(rows)]
    )


def expected_logits(bundle: Path, lowering: str) -> tuple[list[Any], list[Any]]:
    """Of one rank: after each prompt, and of its greedy tokens' decode steps [STEPS][prompt]."""
    executor = OnnxRuntimeExecutor(bundle, read_manifest(bundle), lowering, threads=1)
    first = []
    for row, prompt in enumerate(PROMPTS):
        for start in range(0, len(prompt), 48):
            logits = executor.forward(chunk(row, prompt[start : start + 48], start))
        first.append(logits[0])
    steps, last = [], first
    for n in range(STEPS):
        rows = [(int(logits.argmax()), len(p) + n) for logits, p in zip(last, PROMPTS, strict=True)]
        last = list(executor.forward(decode(n, rows)))
        steps.append(last)
    executor.close()
    return first, steps


@pytest.mark.parametrize("lowering", ["fast", "portable"])
def test_uneven_and_empty_groups_compute_what_one_rank_does(
    bundle: Path, cpu_bundle: Path, lowering: str
) -> None:
    first, steps = expected_logits(cpu_bundle, lowering)
    executor = OnnxRuntimeExecutor(bundle, read_manifest(bundle), lowering, threads=1)
    groups = executor.kv.groups
    assert groups == read_manifest(bundle).mapping.attention_dp > 1
    places = [OWNERS[:n].count(owner) for n, owner in enumerate(OWNERS)]  # rows in their groups
    found: dict[Any, Any] = {}

    def run(batches: dict[int, StepBatch]) -> list[Any]:
        return executor.forwards([batches.get(group) for group in range(groups)])

    # Prompt by prompt of each group, the groups side by side; the long one of group 1 in two chunks.
    run({0: chunk(0, PROMPTS[0])})
    found[0] = run({0: chunk(0, PROMPTS[0]), 1: chunk(0, PROMPTS[2][:48])})[0][0]
    logits = run({0: chunk(1, PROMPTS[1]), 1: chunk(0, PROMPTS[2][48:], 48)})
    found[1], found[2] = logits[0][0], logits[1][0]
    logits = run({0: chunk(2, PROMPTS[3]), 1: decode(0, [(int(first[2].argmax()), len(PROMPTS[2]))])})
    found[3], found[0, 2] = logits[0][0], logits[1][0]  # one prefills while the other decodes
    assert logits[2:] == [None] * (groups - 2)
    found[4] = run({1: chunk(1, PROMPTS[4])})[1][0]  # the first has rows, and nothing to do
    last = dict(enumerate(first))
    for n in range(STEPS):
        batches = {}
        for group in (0, 1):
            own = [index for index in range(len(PROMPTS)) if OWNERS[index] == group]
            rows = [(int(last[index].argmax()), len(PROMPTS[index]) + n) for index in own]
            batches[group] = decode(n, rows)
        logits = run(batches)
        for index, owner in enumerate(OWNERS):
            found[n, index] = logits[owner][places[index]]
        last = dict(enumerate(steps[n]))
    wanted: dict[Any, Any] = dict(enumerate(first))
    wanted |= {(n, index): steps[n][index] for n in range(STEPS) for index in range(len(PROMPTS))}
    scale = max(np.abs(logits).max() for logits in wanted.values())
    for key, logits in wanted.items():
        assert np.abs(found[key] - logits).max() <= TOLERANCE * scale, key
        assert found[key].argmax() == logits.argmax(), key
    executor.close()


def test_a_group_fails_alone(bundle: Path) -> None:
    """A batch against the protocol, and one that is not sampled as it should be: the other group goes on."""
    executor = OnnxRuntimeExecutor(bundle, read_manifest(bundle), threads=1)
    idle = [None] * (executor.kv.groups - 2)
    wrong = StepBatch(3, "prefill", [RowStep(0, [9999999], 0, 1, True)])
    bad, good, *others = executor.steps([wrong, chunk(0, PROMPTS[0]), *idle])
    assert bad is not None
    assert (bad.rows, bad.step_id) == ([], 3)
    assert "outside the vocabulary" in bad.failure
    unknown = StepBatch(4, "prefill", [RowStep(3, [5], 0, 1, True)])
    after, unsampled, *_ = executor.steps([chunk(0, PROMPTS[0]), unknown, *idle])
    assert "never had sampling parameters" in unsampled.failure
    assert good.rows[0].token == after.rows[0].token is not None
    assert others == idle
    executor.close()


QUESTIONS = [
    "Hello!",
    "What is 2 plus 3?",
    "Who are you?",
    "Tell me a joke.",
    "Thanks, bye!",
    "What is the time?",
]


def test_the_engine_answers_as_that_of_one_rank(bundle: Path, cpu_bundle: Path) -> None:
    """Greedy, and seeded draws, of requests that come together and end at different times."""
    asked = [
        {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 5 + 6 * n,
            "ignore_eos": True,
            **more,
        }
        for n, question in enumerate(QUESTIONS)
        for more in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 20, "seed": n})
    ]
    with Bundle.load(cpu_bundle, verify_checksums="sizes", threads=1) as one:
        wanted = [one.generate(**fields) for fields in asked]
    with Bundle.load(bundle, verify_checksums="sizes", threads=1) as loaded:
        with ThreadPoolExecutor(len(asked)) as threads:
            found = list(threads.map(lambda fields: loaded.generate(**fields), asked))
        stats, groups = loaded.engine.stats(), loaded.manifest.mapping.attention_dp
        assert loaded.kv_tokens == groups * SIZES["max_rows"] * SIZES["context"]
        alone = loaded.generate(**asked[0])
    for answer, expected in zip([*found, alone], [*wanted, wanted[0]], strict=True):
        assert (answer.reasoning, answer.text) == (expected.reasoning, expected.text)
    assert len(stats["groups"]) == groups
    most = max(int(rows) for rows in stats["rows_histogram"])
    assert most > SIZES["max_rows"], "no step had more rows than one group decodes"


def test_a_budget_is_for_all_groups_and_a_request_for_one(bundle: Path) -> None:
    groups = read_manifest(bundle).mapping.attention_dp
    with Bundle.load(bundle, verify_checksums="sizes", threads=1, kv_tokens=groups * 100) as loaded:
        assert loaded.kv_tokens == groups * 100
        assert [group["kv_tokens_free"] for group in loaded.engine.stats()["groups"]] == [100] * groups
        assert loaded.generate(prompt="a b c", max_tokens=40, ignore_eos=True).num_output_tokens == 40
        with pytest.raises(Exception, match="100"):
            loaded.generate(prompt="a b c", max_tokens=150)
