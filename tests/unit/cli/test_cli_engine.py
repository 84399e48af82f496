"""The engine that a build takes: what is here, what is installed, and why."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from mm2c.engine import select
from mm2c.engine.select import gpu_name, select_engine
from mm2c.errors import UserError


@pytest.mark.parametrize("asked", ["auto", "onnxruntime"])
def test_an_engine_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="ONNX Runtime is not installed") as refused:
        select_engine(asked)
    assert "pip install '.[cpu]'" in refused.value.remedy
    assert select_engine(asked, runs=False).engine == "onnxruntime"  # graphs alone need none


def test_a_gpu_is_named_with_what_it_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "gpu_name", lambda: "NVIDIA H200")
    choice = select_engine("auto")
    assert choice.engine == "onnxruntime"
    assert "NVIDIA H200 is here, but this version does not build" in choice.reason
    monkeypatch.setattr(select, "gpu_name", lambda: None)
    assert select_engine("auto").reason == "no NVIDIA GPU on this machine"


@pytest.mark.parametrize("fault", [subprocess.TimeoutExpired("nvidia-smi", 1), OSError("no such file")])
def test_a_driver_that_does_not_answer_is_no_gpu(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise fault

    monkeypatch.setattr(select.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(select.subprocess, "run", run)
    assert gpu_name() is None
