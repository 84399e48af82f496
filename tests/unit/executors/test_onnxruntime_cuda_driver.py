"""The GPU of an ONNX Runtime rank through CUDA's driver, against a library with the driver's interface and the host's
memory."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_bundle import expected, write_toy_bundle

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors import cuda_driver, provider
from mm2c_runtime.executors.cuda_driver import CudaDevice, CudaError, Driver
from mm2c_runtime.executors.device import DeviceCache
from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
from mm2c_runtime.manifest import KvSpec
from mm2c_runtime.step import RowCopy, RowStep, StepBatch

SOURCE = Path(__file__).resolve().parents[2] / "fixtures" / "cuda_driver.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    built = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-O1", "-o", str(built), str(SOURCE)], check=True)
    return str(built)


@pytest.fixture
def device(library: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDevice]:
    monkeypatch.setenv("FAKE_GPUS", "2")
    made = CudaDevice(Driver(library), 1)
    yield made
    made.close()
    made.close()


def floats(address: int, count: int) -> NDArray[np.float32]:
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))


def test_no_driver_and_no_gpu(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="there is no NVIDIA driver on this machine"):
        Driver("libcuda-that-is-not-there.so.1")
    monkeypatch.setenv("FAKE_GPUS", "0")
    with pytest.raises(BundleError, match="no NVIDIA GPU can be used: CUDA's driver shows none\n"):
        Driver(library)


def test_a_driver_that_fails_says_why(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_INIT", "999")
    with pytest.raises(BundleError, match="shows none: CUDA error 999"):
        Driver(library)


def test_what_the_driver_tells(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GPUS", "3")
    monkeypatch.setenv("FAKE_VERSION", "12080")
    driver = Driver(library)
    assert (driver.count, driver.version) == (3, (12, 8))
    assert driver.name(2).endswith(" 2")
    with pytest.raises(CudaError, match="cuMemAlloc_v2"):  # no context
        driver.call("cuMemAlloc_v2", None, 1 << 60)


def test_memory_is_zero_and_comes_back(device: CudaDevice) -> None:
    free, total = device.free_bytes()
    address = device.allocate(4096)
    assert not floats(address, 1024).any()
    assert device.free_bytes() == (free - 4096, total)
    device.release(address)
    assert device.free_bytes() == (free, total)
    device.allocate(4096)
    device.close()  # gives back what is held


def test_too_little_memory(device: CudaDevice) -> None:
    with pytest.raises(BundleError, match=r"(?s)GPU 1 has no room for 0\.01 GiB more.*cuda:1.*kv_tokens"):
        device.allocate(10 << 20)


def test_pieces_are_copied_and_zeroed(device: CudaDevice) -> None:
    address = device.allocate(4 * 64)
    values = floats(address, 64).reshape(4, 16)
    values[:] = np.arange(64).reshape(4, 16)
    before = values.copy()
    device.copy(address + 4 * 8, address, width=4 * 3, height=4, pitch=4 * 16)
    device.synchronize()
    before[:, 8:11] = before[:, :3]
    assert np.array_equal(values, before)
    device.zero(address + 4, width=8, height=2, pitch=4 * 32)
    before[[0, 2], 1:3] = 0
    assert np.array_equal(values, before)


def test_a_fault_is_told_and_stays(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "libcuda.so.1"  # whose state is not that of the other tests
    shutil.copy(library, own)
    device = CudaDevice(Driver(str(own)), 0)
    address = device.allocate(64)
    with pytest.raises(CudaError, match="cuMemcpy2DUnaligned_v2: an illegal memory access"):
        device.copy(address, address + 32, width=64, height=1, pitch=64)
    with pytest.raises(CudaError, match="illegal memory access"):
        device.synchronize()
    device.close()


def test_a_cache_in_its_memory(device: CudaDevice) -> None:
    cache = DeviceCache(KvSpec(layers=2, kv_heads=2, head_dim=4, dtype="f32"), 3, 8, device)
    for name, block in cache.blocks.items():
        floats(block.address, 3 * 2 * 8 * 4)[2 * 64 :] = np.arange(64) + len(name)
    cache.copy(RowCopy(2, 0, 5))
    cache.clear(2, 2)
    for block in cache.blocks.values():
        rows = floats(block.address, 3 * 2 * 8 * 4).reshape(3, 2, 8, 4)
        wanted = (np.arange(64) + len("k_cache.0")).reshape(2, 8, 4)
        assert np.array_equal(rows[0, :, :5], wanted[:, :5])
        assert not rows[0, :, 5:].any()
        assert np.array_equal(rows[2, :, 2:], wanted[:, 2:])
        assert not rows[2, :, :2].any()


@pytest.mark.parametrize("in_place", [True, False])
def test_an_executor_on_it(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    """Two GPUs, whose memory ONNX Runtime's CPU provider reads and writes by its address."""
    monkeypatch.setenv("FAKE_GPUS", "2")
    driver = Driver(library)
    devices = [CudaDevice(driver, number) for number in range(2)]
    for device in devices:
        monkeypatch.setattr(device, "kind", "cpu", raising=False)
        monkeypatch.setattr(device, "number", 0)
    free = [device.free_bytes()[0] for device in devices]
    manifest = write_toy_bundle(tmp_path, in_place=in_place)
    executor = OnnxRuntimeExecutor(tmp_path, manifest, threads=1, devices=devices)
    assert [device.free_bytes()[0] < before for device, before in zip(devices, free, strict=True)] == [
        True
    ] * 2
    executor.forward(StepBatch(0, "prefill", [RowStep(1, [1, 2, 3], 0, 3, sample=False)]))
    batch = StepBatch(1, "decode", [RowStep(0, [4], 3, 1, sample=False)], copies=[RowCopy(1, 0, 3)])
    assert np.allclose(executor.forward(batch), expected([1, 2, 3, 4]), rtol=1e-5, atol=1e-5)
    executor.close()


def test_libraries_and_gpus_are_asked_for_before_anything_is_allocated(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(provider, "check_package", lambda: None)
    monkeypatch.setattr(cuda_driver.Driver.__init__, "__defaults__", (library,))
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setenv("FAKE_GPUS", "2")
    assert provider.check_machine(2).count == 2
    with pytest.raises(BundleError, match=r"4 ranks need a GPU each, and 2 are visible"):
        provider.open_devices(4)
    monkeypatch.setenv("FAKE_GPUS", "1")
    with pytest.raises(BundleError, match=r"2 ranks need a GPU each, and 1 is visible"):
        provider.check_machine(2)
    monkeypatch.setenv("FAKE_VERSION", "12080")
    with pytest.raises(
        BundleError, match=r"is built for CUDA 13\.0, and this machine's driver is for CUDA 12\.8"
    ):
        provider.check_machine(1)
    monkeypatch.setenv("FAKE_VERSION", "14000")  # newer drivers run older programs
    assert provider.check_machine(1).version == (14, 0)
