"""ONNX Runtime's ranks on devices: what stays there, what fits there, and what a lost one does. The devices are this
machine's memory; what the executor computes on them is in test_onnxruntime_executor.py and tests/numerics."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from host_device import HostDevice
from toy_bundle import CONTEXT, ROWS, WIDTH, expected, write_toy_bundle

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.executors.device import DeviceArray, DeviceCache, DeviceMemory
from mm2c_runtime.executors.device_plan import DeviceSegment
from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
from mm2c_runtime.executors.rank_threads import RankThreads
from mm2c_runtime.manifest import KvSpec
from mm2c_runtime.step import RowStep, StepBatch

SIDE = 4 * WIDTH  # bytes of K of one token
SPEC = KvSpec(layers=1, kv_heads=2, head_dim=4, dtype="f32")
MARGIN = 0.1


def step(row: int, tokens: list[int], past: int = 0) -> StepBatch:
    return StepBatch(0, "prefill", [RowStep(row, tokens, past, len(tokens), sample=False)])


def decode(tokens: list[int], past: int) -> StepBatch:
    return StepBatch(1, "decode", [RowStep(n, [t], past, 1, sample=False) for n, t in enumerate(tokens)])


def made(folder: Path, devices: list[HostDevice], **more: object) -> OnnxRuntimeExecutor:
    bundle = {name: more.pop(name) for name in ("in_place",) if name in more}
    return OnnxRuntimeExecutor(folder, write_toy_bundle(folder, **bundle), devices=devices, **more)  # type: ignore[arg-type]


def test_caches_stay_on_their_devices_and_only_new_positions_are_copied(tmp_path: Path) -> None:
    devices = [HostDevice(), HostDevice()]
    executor = made(tmp_path, devices, in_place=False)
    executor.forward(step(0, [1, 2, 3]))
    executor.forward(step(1, [4]))
    assert [device.calls for device in devices] == [[(3 * SIDE, 1)] * 2 + [(SIDE, 1)] * 2] * 2
    for device in devices:
        device.calls.clear()
    allocated = [device.allocated for device in devices]
    for n in range(3):
        logits = executor.forward(decode([5, 6], 3 + n))
    assert np.allclose(logits[0], expected([1, 2, 3, 5, 5, 5]), rtol=1e-5, atol=1e-5)
    assert [device.calls for device in devices] == [[(SIDE, 1)] * 12] * 2  # steps x (k, v) x rows
    assert [device.allocated for device in devices] == allocated  # nothing grows from step to step
    for bound in (bound for ranks in executor._plans[2,].segments for bound in ranks):
        caches = [array for name, array in bound.reads if "_cache." in name]
        assert all(isinstance(array, DeviceArray) for array in caches)
    executor.close()
    assert all(device.closed for device in devices)


def test_inputs_are_bound_for_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime copies an input that lies elsewhere than its reader wants it when it is bound, and only then."""
    executor = made(tmp_path, [HostDevice(), HostDevice()])
    executor.forward(step(0, [1]))
    executor.forward(decode([2], 1))
    bound: list[str] = []
    read = DeviceSegment.__mro__[1].read  # type: ignore[attr-defined]
    monkeypatch.setattr(
        DeviceSegment.__mro__[1],
        "read",
        lambda self, name, array: (bound.append(name), read(self, name, array)),
    )
    executor.forward(decode([3], 2))
    assert {"input_ids", "past_len", "new_len", "sum", "joined"} <= set(bound)
    executor.close()


def test_a_rank_has_a_thread_of_its_own() -> None:
    threads = RankThreads(3)
    barrier = threading.Barrier(3, timeout=10)  # passes only where all three run at the same time

    def name() -> str:
        barrier.wait()
        return threading.current_thread().name

    first = threads.each([name] * 3)
    assert first == threads.each([name] * 3)
    assert len(set(first)) == 3

    ended = []

    def slow() -> None:
        threading.Event().wait(0.05)
        ended.append(1)

    def fail() -> None:
        raise ValueError("a rank failed")

    with pytest.raises(ValueError, match="a rank failed"):
        threads.each([fail, slow, slow])
    assert len(ended) == 2  # nothing still runs when the failure is told
    threads.close()


def test_a_failing_run_and_a_lost_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [HostDevice(), HostDevice()]
    executor = made(tmp_path, devices)
    executor.forward(decode([1], 0))

    def fail(self: DeviceSegment) -> None:
        raise RuntimeError("CUDA failure 700")

    monkeypatch.setattr(DeviceSegment, "run", fail)
    with pytest.raises(RequestError, match=r"INTERNAL: .* step 1: CUDA failure 700"):
        executor.forward(decode([1], 0))
    devices[1].lost = True
    with pytest.raises(ConnectionError, match="cpu:0 is lost: an illegal memory access"):
        executor.forward(decode([1], 0))
    executor.close()


def test_as_many_rows_as_fit(tmp_path: Path) -> None:
    """Two ranks; the one with less memory decides. A row takes K and V of each position, and one is spare."""
    row = 2 * SIDE * CONTEXT

    def rows(memory: int, folder: str, **more: object) -> tuple[int, int]:
        devices = [HostDevice(), HostDevice(total=memory)]
        (tmp_path / folder).mkdir()
        executor = made(tmp_path / folder, devices, threads=1, **more)
        executor.forward(step(0, [1, 2]))
        limits = executor.limits
        assert executor.kv.rows == limits.max_rows + 1
        executor.close()
        return limits.max_rows, limits.context

    room = int((8 + 3 * row) / (1 - MARGIN)) + 8
    assert rows(1 << 30, "all") == (ROWS, CONTEXT)
    assert rows(room, "two") == (2, CONTEXT)
    assert rows(1 << 30, "asked", kv_tokens=CONTEXT + 1) == (2, CONTEXT)
    assert rows(1 << 30, "short", kv_tokens=5) == (1, 5)
    with pytest.raises(
        BundleError, match=r"(?s)rank 1 needs .* serve with kv_tokens=32 or less \(MM2C_KV_TOKENS=32\)"
    ) as error:
        rows(room, "too many", kv_tokens=3 * CONTEXT)
    assert "weights" in error.value.what
    with pytest.raises(BundleError, match=r"(?s)kv_tokens=\d+ or less .* which is then the longest context"):
        rows(int(1.5 * row / (1 - MARGIN)), "no row")
    with pytest.raises(BundleError, match="build for more ranks"):
        rows(60, "nothing")


def test_devices_are_closed_where_loading_fails(tmp_path: Path) -> None:
    devices = [HostDevice(), HostDevice()]
    manifest = write_toy_bundle(tmp_path)
    segment = tmp_path / "rank1/toy.001.onnx"
    segment.write_bytes(bytes(segment.stat().st_size))
    with pytest.raises(BundleError, match="cannot load a program"):
        OnnxRuntimeExecutor(tmp_path, manifest, threads=1, devices=devices)
    assert all(device.closed for device in devices)


def test_rows_of_a_cache_move_within_it() -> None:
    from mm2c_runtime.step import RowCopy

    device = HostDevice()
    cache = DeviceCache(SPEC, 3, 8, device)
    values = np.frombuffer(memoryview(device._held[cache.blocks["k_cache.0"].address]), np.float32)
    block = values[: 3 * 2 * 8 * 4].reshape(3, 2, 8, 4)
    block[2] = np.arange(64).reshape(2, 8, 4)
    cache.copy(RowCopy(2, 0, 5))
    assert np.array_equal(block[0, :, :5], block[2, :, :5])
    assert not block[0, :, 5:].any()
    assert not block[1].any()
    cache.clear(2, 3)
    assert not block[2, :, :3].any()
    assert np.array_equal(block[2, :, 3:], np.arange(64).reshape(2, 8, 4)[:, 3:])
    assert cache.bytes_per_token == 4 * 2 * 4 * 2


def test_blocks_of_similar_sizes_are_shared() -> None:
    memory = DeviceMemory(HostDevice())
    assert [memory.block(size).size for size in (1, 512, 513, 1000)] == [512, 512, 1024, 1024]
    for size in (10_000, 1 << 20, (1 << 20) + 1, 3_000_000):
        assert size <= memory.block(size).size <= size * 1.13


def test_a_cache_of_another_type_is_refused() -> None:
    with pytest.raises(BundleError, match="in f32, this bundle asks for bf16"):
        DeviceCache(SPEC.model_copy(update={"dtype": "bf16"}), 1, 8, HostDevice())
