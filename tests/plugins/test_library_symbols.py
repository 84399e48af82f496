"""What the built libraries need and offer: nothing of TensorRT, CUDA or torch is linked."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mm2c_plugins.host import native
from mm2c_plugins.host.library import NAME

LIBRARIES = [NAME, native.NAME]
# the oldest systems that Triton's containers of CUDA 12 and 13 have (Ubuntu 22.04)
NEWEST = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13)}
SYSTEM = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "libdl.so.2"}
EXPORTS = {
    "getCreators",
    "setLoggerFinder",
    "mm2c_plugins_abi",
    "mm2c_plugins_version",
    "mm2c_plugins_last_error",
    "mm2c_plugins_set_launcher",
    "mm2c_plugins_set_device",
    "mm2c_plugins_set_pdl",
    "mm2c_plugins_kernels",
}


def output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} (binutils)")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", LIBRARIES)
def test_only_system_libraries_are_needed(plugin_folder: Path, name: str) -> None:
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", output("readelf", "-dW", str(plugin_folder / name))))
    assert needed <= SYSTEM


@pytest.mark.parametrize("name", LIBRARIES)
def test_undefined_symbols_are_the_systems(plugin_folder: Path, name: str) -> None:
    symbols = output("nm", "-D", "--undefined-only", str(plugin_folder / name))
    foreign = re.findall(r"\b(?:cu[A-Z]|cuda|nvinfer|c10|at::|Py)\w*", symbols)
    assert not foreign
    for prefix, newest in NEWEST.items():
        for version in re.findall(rf"@{prefix}_([\d.]+)", symbols):
            assert tuple(map(int, version.split("."))) <= newest, f"{prefix}_{version}"


def test_exports(plugin_folder: Path) -> None:
    symbols = output("nm", "-D", "--defined-only", str(plugin_folder / NAME))
    assert {line.split()[-1] for line in symbols.splitlines()} == EXPORTS


@pytest.mark.parametrize("name", LIBRARIES)
def test_no_executable_stack_and_no_search_path(plugin_folder: Path, name: str) -> None:
    headers = output("readelf", "-lW", str(plugin_folder / name))
    (flags,) = re.findall(r"GNU_STACK(?:\s+0x\w+){5}\s+(\S+)", headers)
    assert "E" not in flags
    assert not re.search(r"RPATH|RUNPATH", output("readelf", "-dW", str(plugin_folder / name)))
