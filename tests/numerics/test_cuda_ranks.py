"""The cuda engine's ranks as processes over gloo, with references for kernels: the same program and step protocol
that GPUs run over NCCL."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_reference import SamplingOps, build_cuda_bundle
from paged_driver import TOLERANCE, Driver

from mm2c_runtime.executors.cuda.executor import CudaExecutor
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.ranks.executor import RankedExecutor
from mm2c_runtime.step import RowStep, SamplingParams, StepBatch

OPS = "cuda_reference:SamplingOps"
PROMPTS = [[5, 90, 17, 33, 260, 8, 41, 300, 12, 77, 19, 200, 3, 61], [44, 7, 500, 2, 31]]
pytestmark = pytest.mark.usefixtures("one_thread")


def alone(bundle: Path) -> CudaExecutor:
    return CudaExecutor(bundle, read_manifest(bundle), ops=SamplingOps(), device="cpu", kv_tokens=512)


@pytest.fixture(
    scope="module",
    params=[{"tp": 2}, {"tp": 4, "ep": 2}],
    ids=lambda cut: "-".join(f"{k}{v}" for k, v in cut.items()),
)
def ranked(
    request: pytest.FixtureRequest, tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """An executor of several ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    sizes = {"context": 256, "max_rows": 4, "prefill_chunk": 64}
    bundle = build_cuda_bundle(tiny_m2, folder / "bundle", folder / "library", **sizes, **request.param)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "fixtures")  # where the ranks find their ops
    try:
        executor = RankedExecutor(
            bundle, devices=["cpu"] * request.param["tp"], backend="gloo", kv_tokens=512, ops=OPS
        )
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    yield executor
    executor.close()


def test_ranks_compute_what_one_does(ranked: Any, cuda_bundle: Path) -> None:
    """Prefill in two chunks, then decode steps of two rows: logits and greedy tokens."""
    single = alone(cuda_bundle)
    drivers = [Driver(executor) for executor in (ranked, single)]
    assert ranked.kv.page == single.kv.page
    assert ranked.kv_tokens == single.kv_tokens == 512
    logits = []
    for driver in drivers:
        first = RowStep(
            0, PROMPTS[0], 0, len(PROMPTS[0]), True, blocks=[0], sampling=SamplingParams(temperature=0.0)
        )
        logits.append(driver.executor.forward(StepBatch(7, "prefill", [first])))
        driver.executor.step(StepBatch(8, "prefill", [first], released=[0]))
        driver.released.append(0)
    assert np.abs(logits[0] - logits[1]).max() < TOLERANCE * np.abs(logits[1]).max()
    found = []
    for driver in drivers:
        tokens = [driver.prefill(prompt, 64, chunk=9)[1].token for prompt in PROMPTS]
        answers = [tokens]
        for step in range(1, 4):
            batch = driver.decode_batch([int(token or 0) for token in answers[-1]], [step, step])
            answers.append([row.token for row in driver.executor.step(batch).rows])
        found.append(answers)
    assert found[0] == found[1]
    assert ranked.forward_seconds > 0
    single.close()


def test_late_masks_and_draws(ranked: Any, cuda_bundle: Path) -> None:
    """A mask that is promised only, and a seeded draw: as on one rank."""
    single = alone(cuda_bundle)
    found = []
    for executor in (ranked, single):
        promise: Future[Any] = Future()
        bits = np.zeros(23, np.int32)
        bits[3] = 0b1010_0000
        promise.set_result(bits)
        rows = RowStep(
            0, PROMPTS[1], 0, len(PROMPTS[1]), True, blocks=[1], bitmask=promise, logprobs=2,
            sampling=SamplingParams(temperature=1.0, top_k=20, seed=3),
        )  # fmt: skip
        found.append(executor.step(StepBatch(20, "prefill", [rows], released=[0])).rows[0])
    assert found[0].token == found[1].token
    assert found[0].token in (3 * 32 + 5, 3 * 32 + 7)
    assert found[0].logprobs is not None
    assert abs(found[0].logprobs.chosen - found[1].logprobs.chosen) < 0.3
    single.close()


def test_draws_from_candidates_are_those_from_all_logits(ranked: Any) -> None:
    """Ranks exchange their best tokens, or all logits where log probabilities are asked for: the same tokens."""
    for seed in range(12):
        params = SamplingParams(temperature=1.3, top_k=40, top_p=0.95, seed=seed)
        found = []
        for logprobs in (None, 0):
            row = RowStep(
                0, PROMPTS[seed % 2], 0, len(PROMPTS[seed % 2]), True, blocks=[1], sampling=params, logprobs=logprobs
            )  # fmt: skip
            result = ranked.step(StepBatch(50, "prefill", [row], released=[0])).rows[0]
            found.append(result.token)
        assert found[0] == found[1] is not None


def test_a_bad_batch_is_refused_and_the_next_one_runs(ranked: Any) -> None:
    wrong = RowStep(0, [5], 9999, 1, True)
    with pytest.raises(ValueError, match="9999"):
        ranked.step(StepBatch(30, "decode", [wrong]))
    good = RowStep(0, [5, 6], 0, 2, True, blocks=[2], sampling=SamplingParams(temperature=0.0))
    assert ranked.step(StepBatch(31, "prefill", [good], released=[0])).rows[0].token is not None


def test_a_killed_rank_is_told_and_ends_the_others(ranked: Any) -> None:
    """Last: nothing is left of the ranks afterwards."""
    os.kill(ranked.processes[1], signal.SIGKILL)
    good = RowStep(0, [5, 6], 0, 2, True, blocks=[2], sampling=SamplingParams(temperature=0.0))
    with pytest.raises(ConnectionError, match="rank 1 was killed by signal 9"):
        ranked.step(StepBatch(40, "prefill", [good], released=[0]))
