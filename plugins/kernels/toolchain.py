"""The tools that kernels are built with, and where this machine has them.

PTX above 9.0 is refused by CUDA 13.0's drivers, so the assembler is CUDA 13.0's: the machine's if it has one, else the
wheel's in requirements-kernels.txt. ``python -m mm2c_plugins.kernels.toolchain tensorrt-include`` prints a path for
make.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TRITON = "3.9.0"
CUDA = "13.0"
PTX = 90  # the PTX version that CUDA 13.0 reads, times ten
TARGETS = {80: "sm_80", 89: "sm_89", 90: "sm_90a", 100: "sm_100a", 120: "sm_120a"}


class ToolMissing(Exception):
    """A tool is not on this machine; the message says which and how to get it."""


@dataclass(frozen=True)
class Ptxas:
    path: Path
    version: str  # "13.0.88"


def _package_folder(package: str) -> Path | None:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def _ptxas_candidates() -> Iterator[Path]:
    found = shutil.which("ptxas")
    if found:
        yield Path(found)
    for home in (os.environ.get("CUDA_HOME"), f"/usr/local/cuda-{CUDA}", "/usr/local/cuda"):
        if home:
            yield Path(home, "bin", "ptxas")
    for folder in sys.path:
        yield Path(folder, "nvidia", "cu13", "bin", "ptxas")


def ptxas_version(path: Path) -> str | None:
    """ "13.0.88" of an assembler; None where there is none that runs."""
    try:
        run = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release [\d.]+, V([\d.]+)", run.stdout)
    return found.group(1) if found else None


@functools.cache
def find_ptxas() -> Ptxas:
    """CUDA 13.0's assembler. MM2C_PTXAS names one; otherwise the first of that release is taken."""
    chosen = os.environ.get("MM2C_PTXAS")
    seen = []
    for path in [Path(chosen)] if chosen else _ptxas_candidates():
        version = ptxas_version(path)
        if version and version.startswith(f"{CUDA}."):
            return Ptxas(path, version)
        if version:
            seen.append(f"{path} is {version}")
    raise ToolMissing(
        f"no ptxas of CUDA {CUDA} ({'; '.join(seen) or 'none found'}): install plugins/requirements-kernels.txt"
        " (make plugins does) or name one in MM2C_PTXAS"
    )


def find_nvdisasm() -> Path:
    """The disassembler that comes with triton."""
    folder = _package_folder("triton")
    path = folder / "backends/nvidia/bin/nvdisasm" if folder else None
    if path is None or not path.exists():
        raise ToolMissing(
            "nvdisasm comes with triton, which is not in this environment: see requirements-kernels.txt"
        )
    return path


@functools.cache
def versions() -> dict[str, str]:
    """What a cubin depends on beside its source. Raises ToolMissing."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise ToolMissing("triton is not in this environment: see requirements-kernels.txt") from None
    if triton != TRITON:
        raise ToolMissing(
            f"triton is {triton}, the kernels are built with {TRITON}: see requirements-kernels.txt"
        )
    return {"triton": triton, "ptxas": find_ptxas().version, "ptx": f"{PTX // 10}.{PTX % 10}"}


def tensorrt_include() -> Path:
    """The folder of NvInferRuntime.h: TENSORRT_INCLUDE, the system's, or the kernel environment's wheel."""
    named = os.environ.get("TENSORRT_INCLUDE")
    wheel = _package_folder("kernel_lens")
    places = [Path(named)] if named else [Path("/usr/include/x86_64-linux-gnu"), Path("/usr/include")]
    if wheel and not named:
        places.append(wheel / "include" / "tensorrt")
    for place in places:
        if (place / "NvInferRuntime.h").exists() and (place / "NvInferRuntimePlugin.h").exists():
            return place
    raise ToolMissing("no TensorRT headers: install plugins/requirements-kernels.txt or set TENSORRT_INCLUDE")


if __name__ == "__main__":
    if sys.argv[1:] != ["tensorrt-include"]:
        sys.exit("usage: python -m mm2c_plugins.kernels.toolchain tensorrt-include")
    try:
        print(tensorrt_include())
    except ToolMissing as error:
        sys.exit(f"error: {error}")
