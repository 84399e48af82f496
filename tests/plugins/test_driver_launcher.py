"""The launcher of the CUDA driver, against a driver that only keeps book."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mm2c_plugins.host import Library

SOURCE = Path(__file__).parent / "fake_driver.c"

ATTACH_AND_LAUNCH = """
import os, sys
from mm2c_plugins.host import Library, PluginError, TensorArg

def log(line):
    with open(os.environ["FAKE_CUDA_LOG"], "a") as file:
        file.write(line + "\\n")

library = Library(sys.argv[1])
row = lambda at: TensorArg("bf16", (3, 256), at)
inputs, outputs = [row(4096), row(8192), TensorArg("bf16", (256,), 12288)], [row(16384), row(20480)]
try:
    op = library.create("M2AddRmsNorm", {"eps": 1e-6}).attach()
    log("attached")
    library.create("M2AddRmsNorm", {"eps": 1e-6}).attach()
    for on in (False, True):
        library.set_pdl(on)
        op.enqueue(inputs, outputs, 0, 77)
except PluginError as error:
    log(f"refused {error}")
"""

Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path, plugin_folder: Path) -> Run:
    """run(old=False, **environment): what the driver and the script above noted, line by line."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    if not Library(plugin_folder).kernels(90):
        pytest.skip("the library was built without kernels for sm_90")

    def run_script(old: bool = False, **environment: str) -> list[str]:
        driver, log = tmp_path / "libcuda.so.1", tmp_path / "log"
        flags = ["-DOLD"] if old else []
        command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", str(driver), str(SOURCE)]
        subprocess.run(command, check=True)
        paths = {"LD_LIBRARY_PATH": str(tmp_path), "FAKE_CUDA_LOG": str(log)}
        subprocess.run(
            [sys.executable, "-c", ATTACH_AND_LAUNCH, str(plugin_folder)],
            check=True,
            env={**os.environ, **paths, **environment},
        )
        return log.read_text().splitlines()

    return run_script


def test_loads_when_attached_and_only_launches_later(run: Run, plugin_folder: Path) -> None:
    images = [each for each in Library(plugin_folder).kernels(90) if each["kernel"] == "add_rms_norm"]
    lines = run()
    attached = lines.index("attached")
    loads, launches = lines[:attached], lines[attached + 1 :]
    assert sum(line.startswith("load ") for line in loads) == len(images)
    shared = sorted(int(line.split()[-1]) for line in loads if line.startswith("shared "))
    assert shared == sorted(each["shared"] for each in images)
    # a second plugin loads nothing again, and enqueue loads nothing at all
    assert len(launches) == 2
    for line, dependent in zip(launches, ("attribute 0", "attribute 6"), strict=True):
        assert line.startswith("launch add_rms_norm grid 3 1 1 block ")
        assert f"width 256 scratch 1 {dependent} stream 77" in line


def test_older_architectures_know_no_dependent_launch(run: Run, plugin_folder: Path) -> None:
    if not Library(plugin_folder).kernels(80):
        pytest.skip("the library was built without kernels for sm_80")
    launches = [line for line in run(FAKE_CUDA_SM="86") if line.startswith("launch ")]
    assert len(launches) == 2
    assert all("attribute 0" in line for line in launches)


@pytest.mark.parametrize("parameters", ["6", "10"])
def test_a_kernel_with_other_parameters_is_refused(run: Run, parameters: str) -> None:
    assert "the table lists 7" in run(FAKE_CUDA_PARAMETERS=parameters)[-1]


def test_kernels_may_lack_scratch_parameters(run: Run) -> None:
    assert run(FAKE_CUDA_PARAMETERS="7")[-1].startswith("launch ")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"FAKE_CUDA_SM": "75"}, "compute capability 7.5 is not supported"),
        ({"FAKE_CUDA_SM": "103"}, "compute capability 10.3 is not supported"),
        ({"FAKE_CUDA_NO_CONTEXT": "1"}, "this thread has no current CUDA context"),
    ],
)
def test_refusals_come_before_any_load(run: Run, environment: dict[str, str], reason: str) -> None:
    (line,) = run(**environment)
    assert line.startswith(f"refused M2AddRmsNorm: {reason}")


def test_a_failed_launch_says_what_the_driver_says(run: Run) -> None:
    line = run(FAKE_CUDA_LAUNCH="700")[-1]
    assert line.startswith("refused M2AddRmsNorm: ")
    assert "an illegal memory access was encountered (700)" in line


def test_an_old_driver_is_refused(run: Run) -> None:
    assert "older than CUDA 12.0" in run(old=True)[-1]


def test_a_machine_without_a_driver(tmp_path: Path, plugin_folder: Path) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has a driver")
    log = tmp_path / "log"
    subprocess.run(
        [sys.executable, "-c", ATTACH_AND_LAUNCH, str(plugin_folder)],
        check=True,
        env={**os.environ, "FAKE_CUDA_LOG": str(log)},
    )
    if not Library(plugin_folder).kernels(0):
        pytest.skip("the library was built without kernels")
    assert "no NVIDIA driver here" in log.read_text()
