"""The engine that a build takes: what is here, what is installed, and why."""

from __future__ import annotations

import subprocess
import types
from typing import Any

import pytest

from mm2c.engine import select
from mm2c.engine.select import SUPPORTED, Gpu, find_gpu, select_engine
from mm2c.engine.tensorrt import library
from mm2c.errors import UserError

H200 = Gpu("NVIDIA H200", "9.0")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(found: Gpu | None) -> None:
        monkeypatch.setattr(select, "find_gpu", lambda: found)

    return put


@pytest.mark.parametrize("asked", ["auto", "onnxruntime"])
def test_an_engine_that_is_not_installed_is_refused(
    monkeypatch: pytest.MonkeyPatch, gpu: Any, asked: str
) -> None:
    gpu(None)
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="ONNX Runtime is not installed") as refused:
        select_engine(asked)
    assert "pip install '.[cpu]'" in refused.value.remedy
    assert select_engine(asked, runs=False).engine == "onnxruntime"  # graphs alone need none


def test_auto_takes_the_gpu_s_engine_and_names_the_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Any) -> None:
    monkeypatch.setattr(select, "find_spec", lambda name: None)  # ONNX Runtime is not needed then
    gpu(H200)
    choice = select_engine("auto")
    assert choice.engine == "cuda"
    assert choice.reason == "NVIDIA H200 is here (compute capability 9.0)"
    gpu(None)
    monkeypatch.undo()
    gpu(None)
    assert select_engine("auto") == select.Choice("onnxruntime", "no NVIDIA GPU on this machine")


@pytest.mark.parametrize(
    ("version", "engine", "why"),
    [
        ("11.4.0.106", "tensorrt", "compute capability 9.0), and so is TensorRT 11.4.0.106"),
        ("10.16.0.1", "cuda", "TensorRT 10.16.0.1 is here; this mm2c is written for 11.0"),
        (None, "cuda", "TensorRT is installed but cannot be loaded: libnvinfer.so.11"),
    ],
)
def test_tensorrt_beside_the_gpu_is_taken_where_it_can_be_used(
    monkeypatch: pytest.MonkeyPatch, gpu: Any, version: str | None, engine: str, why: str
) -> None:
    def load(name: str) -> Any:
        if version is None:
            raise ImportError("libnvinfer.so.11: cannot open shared object file")
        return types.SimpleNamespace(__version__=version)

    monkeypatch.setattr(select, "find_spec", lambda name: object())
    monkeypatch.setattr(library.importlib, "import_module", load)
    gpu(H200)
    choice = select_engine("auto")
    assert choice.engine == engine
    assert why in choice.reason


@pytest.mark.parametrize("capability", SUPPORTED)
def test_every_supported_capability_takes_cuda(gpu: Any, capability: str) -> None:
    gpu(Gpu("a GPU", capability))
    assert select_engine("auto").engine == "cuda"


@pytest.mark.parametrize(
    ("capability", "why"), [("7.5", "no kernels for compute capability 7.5"), ("", "driver is too old")]
)
def test_a_gpu_without_kernels_says_why_the_cpu_is_taken(gpu: Any, capability: str, why: str) -> None:
    gpu(Gpu("NVIDIA T4", capability))
    choice = select_engine("auto")
    assert choice.engine == "onnxruntime"
    assert "NVIDIA T4 is here, but" in choice.reason
    assert why in choice.reason


def test_cuda_is_built_where_there_is_no_gpu(gpu: Any) -> None:
    gpu(None)
    assert select_engine("cuda") == select.Choice("cuda", "asked for")


@pytest.mark.parametrize("asked", ["tensorrt", "tensorrt-rtx"])
def test_plans_are_built_for_other_machines_too(gpu: Any, asked: str) -> None:
    gpu(None)
    assert select_engine(asked) == select.Choice(asked, "asked for")  # type: ignore[arg-type]


def test_an_engine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="no engine is called 'tensorrt_rtx'") as refused:
        select_engine("tensorrt_rtx")
    assert "tensorrt-rtx" in refused.value.remedy


@pytest.mark.parametrize("fault", [subprocess.TimeoutExpired("nvidia-smi", 1), OSError("no such file")])
def test_a_driver_that_does_not_answer_is_no_gpu(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise fault

    monkeypatch.setattr(select.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(select.subprocess, "run", run)
    assert find_gpu() is None


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({"name,compute_cap": "NVIDIA H200, 9.0\nNVIDIA H200, 9.0\n"}, H200),
        ({"name": "Tesla V100\n"}, Gpu("Tesla V100", "")),  # a driver that does not know compute_cap
        ({"name,compute_cap": "\n"}, None),
        ({}, None),
    ],
)
def test_what_nvidia_smi_says(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], found: Gpu | None
) -> None:
    def run(command: list[str], **_: Any) -> Any:
        text = answers.get(command[1].removeprefix("--query-gpu="))
        return subprocess.CompletedProcess(command, 6 if text is None else 0, stdout=text or "", stderr="")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(select.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(select.subprocess, "run", run)
    assert find_gpu() == found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the way to hide GPUs from a program
    assert find_gpu() is None
