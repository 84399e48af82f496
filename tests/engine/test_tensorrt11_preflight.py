"""What `--engine tensorrt` asks of a machine before any work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorrt11_module import gpu_stand_in, library_stand_in, made, run_with_tensorrt
from typer.testing import CliRunner

from mm2c.cli.main import app
from mm2c.engine.plugin_library import NAMES, VARIABLE, library_folder
from mm2c.engine.select import Gpu
from mm2c.engine.tensorrt import preflight
from mm2c.engine.tensorrt.library import Library
from mm2c.engine.tensorrt.preflight import check_finishing, check_tensorrt_machine, find_nccl
from mm2c.errors import UserError

MODULE, GPU = "there is no module tensorrt", "no NVIDIA GPU"


@pytest.fixture(autouse=True)
def built() -> None:
    if not (library_folder() / NAMES[0]).exists():
        pytest.skip("no plugin library: `make plugins` builds it")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TensorRT, no GPU, no NCCL."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(preflight, "find_gpu", lambda: None)
    monkeypatch.setattr(preflight, "find_nccl", lambda: "")


def lines(error: UserError) -> list[str]:
    return [line for line in error.what.splitlines() if line.startswith("  - ")]


def test_all_that_is_missing_is_in_one_message(bare: None) -> None:
    with pytest.raises(UserError) as raised:
        check_tensorrt_machine(ranks=4, defer=False)
    module, gpu, nccl = lines(raised.value)
    assert MODULE in module
    assert "pip install '.[tensorrt]'" in module
    assert GPU in gpu
    assert "libnccl.so.2" in nccl
    assert "4 ranks" in nccl
    assert "--defer-plan" in raised.value.remedy
    assert "--finish" in raised.value.remedy


def test_the_plugin_library_is_asked_for_too(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(UserError) as raised:
        check_tensorrt_machine(ranks=4, defer=False)
    assert len(lines(raised.value)) == 4
    assert NAMES[0] in lines(raised.value)[0]
    with pytest.raises(UserError, match="the graphs cannot be prepared") as raised:
        check_tensorrt_machine(ranks=4, defer=True)
    assert len(lines(raised.value)) == 1
    assert "make plugins" in raised.value.remedy


def test_a_library_without_the_creators_is_refused(bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "NAMESPACE", "elsewhere")  # a library whose creators are registered there
    with pytest.raises(UserError, match=r"has no M2AddRmsNorm, M2Fp8Linear, .*M2RouterLinear"):
        check_tensorrt_machine(ranks=1, defer=True)


def test_a_deferred_build_needs_the_plugin_library_alone(bare: None) -> None:
    ready = check_tensorrt_machine(ranks=4, defer=True)
    assert (ready.module, ready.gpu) == (None, None)
    assert ready.plugins.architectures


def test_one_rank_needs_no_nccl(bare: None) -> None:
    with pytest.raises(UserError) as raised:
        check_tensorrt_machine(ranks=1, defer=False)
    assert len(lines(raised.value)) == 2


@pytest.mark.parametrize("capability", ["7.5", "12.1", ""])
def test_a_gpu_without_kernels_is_named(bare: None, monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(preflight, "find_gpu", lambda: Gpu("Some GPU", capability))
    with pytest.raises(UserError) as raised:
        check_tensorrt_machine(ranks=1, defer=False)
    shown = f"compute capability {capability}" if capability else "an unknown compute capability"
    assert f"Some GPU has {shown}: the plugins have kernels for 8.0" in raised.value.what


@pytest.mark.parametrize("capability", ["8.0", "8.6", "9.0", "12.0"])
def test_a_machine_that_has_all(bare: None, monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    module = Library("tensorrt", "tensorrt", "11.4.0.106")
    monkeypatch.setattr(preflight, "find_gpu", lambda: Gpu("Some GPU", capability))
    monkeypatch.setattr(preflight, "find_library", lambda engine: module)
    monkeypatch.setattr(preflight, "find_nccl", lambda: "libnccl.so.2")
    ready = check_tensorrt_machine(ranks=4, defer=False)
    assert (ready.module, ready.gpu) == (module, capability)
    assert check_finishing(ranks=4) == (module, capability)


def test_finishing_says_that_nothing_was_changed(bare: None) -> None:
    with pytest.raises(UserError) as raised:
        check_finishing(ranks=2)
    assert len(lines(raised.value)) == 3
    assert "nothing of the bundle was changed" in raised.value.remedy


def test_a_build_stops_before_any_work(bare: None, tiny_m2: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    result = CliRunner().invoke(
        app, ["build", str(tiny_m2), "--engine", "tensorrt", "--tp", "2", "-o", str(output)]
    )
    assert result.exit_code == 2
    text = " ".join(result.stderr.split())
    assert MODULE in text
    assert GPU in text
    assert "--defer-plan" in text
    assert list(tmp_path.iterdir()) == []


def test_the_real_module_and_what_stands_in_for_a_gpu(tmp_path: Path) -> None:
    """The bindings of 11.4 in a Python that the loader, nvidia-smi and the module tensorrt answer."""
    script = (
        "import json; from dataclasses import asdict; from mm2c.engine.tensorrt.preflight import *; "
        "ready = check_tensorrt_machine(ranks=4, defer=False); "
        "print(json.dumps([asdict(ready.module), ready.gpu, find_nccl()]))"
    )
    environment = gpu_stand_in(tmp_path / "gpu", "NVIDIA H100 80GB HBM3", "9.0")
    found = run_with_tensorrt(made(tmp_path / "packages"), script, **environment)
    assert found == [
        {"engine": "tensorrt", "module": "tensorrt", "version": "11.4.0.106"},
        "9.0",
        "libnccl.so.2",
    ]


def test_another_tensorrt_is_named(bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.14.1.48'")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"TensorRT 10\.14\.1\.48 is here; this mm2c is written for 11\.0"):
        check_tensorrt_machine(ranks=1, defer=False)
    monkeypatch.delitem(sys.modules, "tensorrt")


def test_nccl_of_a_wheel_is_found(tmp_path: Path) -> None:
    """The wheel has no entry in the loader's path: nvidia/nccl/lib under site-packages."""
    folder = tmp_path / "nvidia" / "nccl" / "lib"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    library_stand_in(folder / "libnccl.so.2")
    code = "import json; from mm2c.engine.tensorrt.preflight import find_nccl; print(json.dumps(find_nccl()))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    found: Any = json.loads(run.stdout)
    assert found in ("libnccl.so.2", str(folder / "libnccl.so.2"))  # the first where the machine has one


def test_no_nccl_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "NCCL", "libmm2c-has-no-such.so.2")
    assert find_nccl() == ""
