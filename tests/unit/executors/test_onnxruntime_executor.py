from __future__ import annotations

import copy
import mmap
from pathlib import Path

import numpy as np
import pytest
from host_device import HostDevice
from toy_bundle import CONTEXT, NAN_TOKEN, ROWS, VOCAB, WIDTH, expected, write_toy_bundle

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.executors.base import Executor
from mm2c_runtime.executors.cache import LinearCache
from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
from mm2c_runtime.manifest import KvSpec
from mm2c_runtime.sampling.sampler import NON_FINITE
from mm2c_runtime.step import RowCopy, RowStep, SamplingParams, StepBatch

GREEDY = SamplingParams(temperature=0.0)


def prefill(row: int, tokens: list[int], past: int = 0, **more: object) -> StepBatch:
    one = RowStep(row, tokens, past, len(tokens), sample=True, sampling=None if past else GREEDY, **more)
    return StepBatch(0, "prefill", [one])


def decode(tokens: list[int], pasts: list[int], **more: object) -> StepBatch:
    rows = [RowStep(i, [t], p, 1, sample=True) for i, (t, p) in enumerate(zip(tokens, pasts, strict=True))]
    return StepBatch(1, "decode", rows, **more)


@pytest.fixture(params=[True, False], ids=["in_place", "written_back"])
def in_place(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=[False, True], ids=["host", "devices"])
def executor(request: pytest.FixtureRequest, tmp_path: Path, in_place: bool):
    """On the CPU, and through what GPUs are served with, on devices that are this machine's memory."""
    manifest = write_toy_bundle(tmp_path, in_place=in_place)
    devices = [HostDevice(), HostDevice()] if request.param else None
    made: Executor = OnnxRuntimeExecutor(tmp_path, manifest, threads=1, devices=devices)
    yield made
    made.close()
    made.close()


def close_to(found: object, *tokens: list[int]) -> bool:
    np.testing.assert_allclose(found, np.stack([expected(t) for t in tokens]), rtol=1e-5, atol=1e-5)
    return True


def test_facts(executor: Executor):
    assert executor.limits.max_rows == ROWS
    assert (executor.kv.rows, executor.kv.context) == (ROWS + 1, CONTEXT)
    assert executor.kv.bytes_per_token == 2 * 2 * WIDTH * 4  # ranks x (k, v) x width x f32


def test_chunks_then_ragged_decode(executor: Executor):
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    for row, prompt in enumerate(prompts):
        for start in range(0, len(prompt), 2):
            logits = executor.forward(prefill(row, prompt[start : start + 2], start))
            assert close_to(logits, prompt[: start + 2])
    for _ in range(3):
        tokens = [int(expected(p).argmax()) % NAN_TOKEN for p in prompts]
        pasts = [len(p) for p in prompts]
        prompts = [[*p, t] for p, t in zip(prompts, tokens, strict=True)]
        assert close_to(executor.forward(decode(tokens, pasts)), *prompts)


def test_forward_gives_an_array_of_its_own(executor: Executor):
    first = executor.forward(prefill(0, [1]))
    kept = first.copy()
    executor.forward(prefill(0, [2]))
    assert np.array_equal(first, kept)


def test_padded_rows_together(executor: Executor):
    rows = [RowStep(i, t, 0, len(t), sample=False) for i, t in enumerate([[1, 2, 3], [4], [5, 6]])]
    assert close_to(executor.forward(StepBatch(0, "prefill", rows)), [1, 2, 3], [4], [5, 6])
    assert close_to(executor.forward(decode([7, 8, 9], [3, 1, 2])), [1, 2, 3, 7], [4, 8], [5, 6, 9])


def test_fewer_and_more_rows_share_their_cache(executor: Executor):
    for row in range(ROWS):
        executor.forward(prefill(row, [row]))
    assert close_to(executor.forward(decode([5], [1])), [0, 5])
    assert close_to(executor.forward(decode([6, 7, 8], [2, 1, 1])), [0, 5, 6], [1, 7], [2, 8])
    assert close_to(executor.forward(decode([9, 9], [3, 2])), [0, 5, 6, 9], [1, 7, 9])


def test_copies_move_cache_and_sampler_state(executor: Executor):
    seeded = SamplingParams(temperature=1.0, seed=5)
    for row in range(ROWS):
        batch = prefill(row, [row, 3])
        batch.rows[0].sampling = seeded if row == 2 else GREEDY
        executor.step(batch)
    alone = copy.deepcopy(decode([4, 4, 4], [2, 2, 2]))
    before = executor.step(alone).rows[2].token
    moved = decode([4, 4], [2, 2], copies=[RowCopy(2, 0, 2)], released=[0])
    assert executor.step(moved).rows[0].token == before
    assert close_to(executor.forward(decode([5], [3])), [2, 3, 4, 5])


def test_the_spare_row_prefills(executor: Executor):
    assert close_to(executor.forward(prefill(ROWS, [1, 2])), [1, 2])
    batch = decode([3], [2], copies=[RowCopy(ROWS, 0, 2)])
    assert close_to(executor.forward(batch), [1, 2, 3])


def test_a_row_that_is_not_finite_fails_alone_and_leaves_nothing_behind(executor: Executor):
    for row in range(2):
        executor.step(prefill(row, [1, 2]))
    first, second = executor.step(decode([NAN_TOKEN, 3], [2, 2])).rows
    assert (first.token, first.error) == (None, NON_FINITE)
    assert (second.token, second.error) == (int(expected([1, 2, 3]).argmax()), None)
    assert executor.step(prefill(0, [4])).rows[0].token == int(expected([4]).argmax())


def test_all_logits_samples_the_last_real_token(tmp_path: Path):
    executor = OnnxRuntimeExecutor(tmp_path, write_toy_bundle(tmp_path, all_logits=True), threads=1)
    rows = [RowStep(i, t, 0, len(t), sample=True, sampling=GREEDY) for i, t in enumerate([[1, 2, 3], [4]])]
    batch = StepBatch(0, "prefill", rows)
    assert executor.forward(batch).shape == (2, 3, VOCAB)
    tokens = [r.token for r in executor.step(batch).rows]
    assert tokens == [int(expected([1, 2, 3]).argmax()), int(expected([4]).argmax())]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (StepBatch(0, "decode", []), "at least one row"),
        (StepBatch(0, "decode", [RowStep(1, [1], 0, 1, False)]), "from 0 on"),
        (StepBatch(0, "decode", [RowStep(0, [1, 2], 0, 2, False)]), "one token for each"),
        (StepBatch(0, "decode", [RowStep(0, [1], 0, 1, False), RowStep(2, [1], 0, 1, False)]), "neighbours"),
        (StepBatch(0, "prefill", [RowStep(ROWS + 1, [1], 0, 1, False)]), "neighbours"),
        (StepBatch(0, "prefill", [RowStep(0, [1, 2], 0, 1, False)]), "new_len 1"),
        (StepBatch(0, "prefill", [RowStep(0, [1] * 4, CONTEXT - 3, 4, False)]), "places"),
        (StepBatch(0, "prefill", [RowStep(0, [VOCAB], 0, 1, False)]), "outside the vocabulary"),
    ],
)
def test_batches_against_the_protocol_are_refused(executor: Executor, batch: StepBatch, message: str):
    with pytest.raises(ValueError, match=message):
        executor.forward(batch)


def test_a_lowering_without_padding_takes_one_row_or_one_token(tmp_path: Path):
    executor = OnnxRuntimeExecutor(tmp_path, write_toy_bundle(tmp_path, padded=False), threads=1)
    for lengths, message in (((2, 1), "equal length"), ((2, 2), "one row at a time")):
        rows = [RowStep(i, [1] * n, 0, n, False) for i, n in enumerate(lengths)]
        with pytest.raises(ValueError, match=message):
            executor.forward(StepBatch(0, "prefill", rows))


def test_a_failing_run_is_an_internal_error(executor: Executor, monkeypatch: pytest.MonkeyPatch):
    executor.forward(decode([1], [0]))
    plan = executor._plans[1,]  # type: ignore[attr-defined]
    monkeypatch.setattr(type(plan), "run", lambda self: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RequestError, match=r"INTERNAL: .* step 1: no memory"):
        executor.forward(decode([1], [0]))


def test_limits_can_only_be_lowered(tmp_path: Path):
    manifest = write_toy_bundle(tmp_path)
    executor = OnnxRuntimeExecutor(tmp_path, manifest, threads=1, rows=2, context=4)
    assert (executor.limits.max_rows, executor.limits.context, executor.limits.prefill_chunk) == (2, 4, 4)
    assert close_to(executor.forward(prefill(1, [1, 2, 3, 4])), [1, 2, 3, 4])
    for more in ({"rows": ROWS + 1}, {"rows": 0}, {"context": CONTEXT + 1}):
        with pytest.raises(BundleError, match="is not between 1 and"):
            OnnxRuntimeExecutor(tmp_path, manifest, threads=1, **more)


def test_bundles_that_cannot_be_loaded(tmp_path: Path):
    manifest = write_toy_bundle(tmp_path)

    def refusal(lowering: str = "fast") -> str:
        with pytest.raises(BundleError) as caught:
            OnnxRuntimeExecutor(tmp_path, manifest, lowering, threads=1)
        assert "remedy:" in str(caught.value)
        assert "where:" in str(caught.value)
        return str(caught.value)

    assert "no lowering 'portable' (it has: fast)" in refusal("portable")
    weights = tmp_path / "rank1/weights"
    weights.write_bytes(b"short")
    assert "5 bytes instead of 8" in refusal()
    weights.unlink()
    assert f"missing\n  where:  {weights}" in refusal()
    weights.write_bytes(b"8 bytes.")
    segment = tmp_path / "rank0/toy.001.onnx"
    good = segment.read_bytes()
    segment.write_bytes(bytes(len(good)))
    assert "cannot load a program" in refusal()
    segment.write_bytes(good)
    program = manifest.lowerings["fast"].ranks[0]
    program.segments[1].inputs.append("extra")
    assert "inputs differ from the manifest's: extra" in refusal()
    program.segments[1].inputs.pop()
    program.collectives.pop()
    assert "other collectives" in refusal()
    manifest.lowerings["fast"].ranks[1].collectives.pop()
    assert "3 segments, 1 collectives" in refusal()


def test_memory_of_rows_that_hold_nothing_is_given_back() -> None:
    """Otherwise a row keeps the pages of its longest sequence, and the cache outgrows its budget."""
    spec = KvSpec(layers=2, kv_heads=2, head_dim=64, dtype="f32")
    cache = LinearCache(spec, 3, 1024)
    begin = resident()
    for block in cache.blocks.values():
        block[:] = 1.0
    assert resident() - begin > 5.5 * 2**20  # 3 rows of half a MiB a layer and side
    cache.drop(1)
    assert resident() - begin < 4.5 * 2**20
    for block in cache.blocks.values():
        assert not block[1].any()
        assert block[0].all()
        assert block[2].all()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_step_drops_released_rows_and_the_sources_of_copies(executor: Executor) -> None:
    for row in range(3):
        executor.step(prefill(row, [1 + row]))
    dropped: list[int] = []
    cache = executor._caches[0]
    cache.drop = dropped.append
    batch = decode([4, 5], [1, 1], released=[0], copies=[RowCopy(2, 0, 1)])
    assert close_to(executor.forward(batch), [3, 4], [2, 5])
    assert dropped == [0, 2]
