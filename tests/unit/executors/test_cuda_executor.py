"""The cuda executor's control path on a toy program; with the real graphs in tests/numerics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_program import (
    CHUNK,
    CONTEXT,
    NAN_TOKEN,
    PAGE,
    ROWS,
    VOCAB,
    ToyOps,
    expected,
    program,
    write,
    write_bundle,
)

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.executors.base import Executor
from mm2c_runtime.executors.cuda import CudaExecutor
from mm2c_runtime.executors.cuda.collectives import SingleRank
from mm2c_runtime.page_pool import pool_for
from mm2c_runtime.sampling.sampler import NON_FINITE
from mm2c_runtime.scheduling.scheduler import Scheduler
from mm2c_runtime.scheduling.sequence import Sequence
from mm2c_runtime.step import RowCopy, RowStep, SamplingParams, StepBatch

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[CudaExecutor]:
    made = CudaExecutor(tmp_path, write_bundle(tmp_path), device="cpu", ops=ToyOps())
    yield made
    made.close()


def prefill(row: int, tokens: list[int], blocks: list[int], past: int = 0) -> StepBatch:
    one = RowStep(row, tokens, past, len(tokens), True, sampling=None if past else GREEDY, blocks=blocks)
    return StepBatch(0, "prefill", [one])


def decode(tokens: list[int], pasts: list[int], **more: object) -> StepBatch:
    rows = [RowStep(i, [t], p, 1, True) for i, (t, p) in enumerate(zip(tokens, pasts, strict=True))]
    return StepBatch(1, "decode", rows, **more)  # type: ignore[arg-type]


def test_it_is_an_executor(executor: CudaExecutor) -> None:
    as_executor: Executor = executor
    assert as_executor.kv.rows == ROWS + 1
    assert as_executor.kv.pages == ROWS * -(-CONTEXT // PAGE)


def test_a_bucket_is_padded_by_its_last_row(executor: CudaExecutor) -> None:
    for row in range(10):
        executor.step(prefill(row, [row % 9, 1], [row]))
    executor._stepper._model._ops.widths.clear()
    logits = executor.forward(decode([2] * 10, [2] * 10))
    assert executor._stepper._model._ops.widths == [(12, 1)]
    np.testing.assert_array_equal(logits, np.stack([expected([row % 9, 1, 2]) for row in range(10)]))
    assert executor.forward(decode([3], [3])).shape == (1, VOCAB)


def test_decode_steps_are_captured_on_inputs_that_can_be_run(
    executor: CudaExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With graphs that only remember what they are to run; a replay reads the same buffers."""
    replayed: list[int] = []

    class Graphs:
        def __init__(self, run: Callable[[int], None], sizes: list[int], device: torch.device) -> None:
            self.run = run
            for rows in sizes:
                run(rows)

        def replay(self, rows: int) -> None:
            replayed.append(rows)
            self.run(rows)

        def close(self) -> None:
            replayed.append(0)

    monkeypatch.setattr("mm2c_runtime.executors.cuda.stepper.DecodeGraphs", Graphs)
    stepper, ops = executor._stepper, executor._stepper._model._ops
    with torch.inference_mode():
        stepper.largest()
        assert ops.widths == [(1, CHUNK), (12, 1)]
        stepper.capture()
    assert [rows for rows, _ in ops.widths[2:]] == [1, 2, 3, 4, 5, 6, 7, 8, 12]
    assert not any(bool(cache.any()) for cache in stepper.places.caches)
    for row in range(9):
        executor.step(prefill(row, [row], [row]))
    logits = executor.forward(decode([2] * 9, [1] * 9))
    np.testing.assert_array_equal(logits, np.stack([expected([row, 2]) for row in range(9)]))
    executor.close()
    assert replayed == [12, 0]


def test_long_prefills_of_several_rows_run_in_groups(executor: CudaExecutor) -> None:
    """At most 12 tokens in a run: the rows of a decode step."""
    some = [[1, 2, 3, 4, 5], [6], [7, 8], [1, 1, 1], [5, 5, 5, 5]]
    steps = [RowStep(i, t, 0, len(t), False, blocks=[2 * i, 2 * i + 1]) for i, t in enumerate(some)]
    logits = executor.forward(StepBatch(0, "prefill", steps))
    assert executor._stepper._model._ops.widths == [(2, 5), (2, 5), (1, 5)]
    np.testing.assert_array_equal(logits, np.stack([expected(tokens) for tokens in some]))


def test_pages_anywhere_and_moves_of_rows(executor: CudaExecutor) -> None:
    executor.step(prefill(0, [1, 2, 3, 4, 5], [9, 2]))
    executor.step(prefill(1, [6, 7], [40]))
    executor.step(prefill(5, [8], [0]))
    moved = decode([3, 4], [1, 2], released=[0], copies=[RowCopy(5, 0, 1)])
    np.testing.assert_array_equal(executor.forward(moved), np.stack([expected([8, 3]), expected([6, 7, 4])]))
    again = prefill(5, [1], [9])  # a page of the row that was released
    np.testing.assert_array_equal(executor.forward(again)[0], expected([1]))


def test_forward_gives_an_array_of_its_own(executor: CudaExecutor) -> None:
    executor.step(prefill(0, [1], [0]))
    first = executor.forward(decode([2], [1]))
    kept = first.copy()
    executor.forward(decode([3], [1]))
    assert np.array_equal(first, kept)


def test_a_nan_leaves_nothing_behind(executor: CudaExecutor) -> None:
    executor.step(prefill(0, [1, 2], [0]))
    executor.step(prefill(1, [1, 2], [1]))
    first, second = executor.step(decode([NAN_TOKEN, 3], [2, 2])).rows
    assert (first.token, first.error) == (None, NON_FINITE)
    assert (second.token, second.error) == (int(expected([1, 2, 3]).argmax()), None)
    assert executor.step(prefill(0, [4], [0])).rows[0].token == int(expected([4]).argmax())


def test_all_logits(tmp_path: Path) -> None:
    executor = CudaExecutor(tmp_path, write_bundle(tmp_path, all_logits=True), device="cpu", ops=ToyOps())
    some = [[1, 2, 3], [4]]
    steps = [RowStep(i, t, 0, len(t), True, sampling=GREEDY, blocks=[i]) for i, t in enumerate(some)]
    logits = executor.forward(StepBatch(0, "prefill", steps))
    assert logits.shape == (2, 3, VOCAB)
    for index in range(3):
        np.testing.assert_array_equal(logits[0, index], expected([1, 2, 3][: index + 1]))
    tokens = [row.token for row in executor.step(StepBatch(0, "prefill", steps)).rows]
    assert tokens == [int(expected(row).argmax()) for row in some]
    assert executor.forward(decode([2, 2], [3, 1])).shape == (2, 1, VOCAB)


def test_ranks_other_than_a_groups_first_do_not_sample(tmp_path: Path) -> None:
    """And wait for no masks, but keep their pages clean as the first does."""
    executor = CudaExecutor(tmp_path, write_bundle(tmp_path), device="cpu", ops=ToyOps())
    executor._samples = False
    assert executor.step(prefill(0, [NAN_TOKEN], [3])).rows == []
    assert not any(bool(cache.isnan().any()) for cache in executor._stepper.places.caches)
    assert executor.forward_seconds > 0


def test_a_device_that_is_lost(executor: CudaExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    executor._stepper._model._steps.clear()
    monkeypatch.setattr(executor._stepper._model, "run", broken)
    with pytest.raises(RequestError, match="INTERNAL: step 0 failed on cpu: CUDA error"):
        executor.step(prefill(0, [1], [0]))
    monkeypatch.setattr("mm2c_runtime.executors.cuda.executor.is_lost", lambda device: True)
    with pytest.raises(ConnectionError, match="cpu is lost: CUDA error: an illegal"):
        executor.step(prefill(0, [1], [0]))


@pytest.mark.parametrize("name", ["cuda:0", "cuda:7"])
def test_without_a_gpu_the_refusal_says_what_to_do(tmp_path: Path, name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BundleError) as caught:
        CudaExecutor(tmp_path, write_bundle(tmp_path), device=name)
    assert "CUDA" in caught.value.what
    assert "install torch" in caught.value.remedy or "--engine onnxruntime" in caught.value.remedy


def test_bundles_that_do_not_fit(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path)

    def refused(message: str, **options: object) -> None:
        with pytest.raises(BundleError) as caught:
            CudaExecutor(tmp_path, manifest, device="cpu", ops=ToyOps(), **options)  # type: ignore[arg-type]
        assert message in caught.value.what
        assert caught.value.remedy

    two = SingleRank()
    two.ranks = 2
    refused("is for 1 GPUs, 2 rank(s) load it", collectives=two)
    raw = program()
    write(tmp_path / "rank0", {**raw, "library": "other"})
    refused("the program's library is other, the manifest's toy")
    write(tmp_path / "rank0", {**raw, "kv": {**raw["kv"], "page": 8}})
    refused("the program's KV cache is")
    write(tmp_path / "rank0", {**raw, "head": {"first": 0, "tokens": 5, "width": 5}})
    refused(
        "the program's part of the vocabulary is 5 tokens from 0 on in 5 columns, the manifest's the whole vocabulary"
    )
    raw["nodes"][0]["op"] = "Scan"
    write(tmp_path / "rank0", raw)
    refused("cannot run Scan")
    raw = program()
    raw["nodes"][-1]["attributes"]["out_dtype"] = "f64"
    write(tmp_path / "rank0", raw)
    refused("f64")
    (tmp_path / "rank0/cuda.json").unlink()
    refused("cannot be read")


def test_the_library_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="plugin library is missing"):
        CudaExecutor(tmp_path, write_bundle(tmp_path), device="cpu")


@settings(max_examples=25, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.lists(st.integers(0, 8), min_size=1, max_size=9), st.integers(1, 6)), max_size=9
    )
)
def test_under_the_scheduler_every_request_says_what_it_says_alone(
    requests: list[tuple[list[int], int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "scheduled"
    folder.mkdir(exist_ok=True)
    executor = CudaExecutor(folder, write_bundle(folder), device="cpu", ops=ToyOps(), kv_tokens=40)
    scheduler = Scheduler(pool_for(executor.limits, executor.kv), prefill_chunk=CHUNK)
    sequences = [Sequence(str(n), prompt, count, GREEDY) for n, (prompt, count) in enumerate(requests)]
    for sequence in sequences:
        scheduler.add(sequence)
    while (batch := scheduler.next_batch()) is not None:
        scheduler.apply(executor.step(batch))
    for sequence in sequences:
        said = list(sequence.prompt)
        for token in sequence.generated:
            assert token == int(expected(said).argmax())
            said.append(token)
