"""What this machine has for the GPU proof, and the project's packages without installing them."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "plugins" / "build"
PACKAGES = {"mm2c_plugins": "plugins", "mm2c_runtime": "model_repo/runtime"}
DRIVER = 13000  # CUDA 13.0: the cubins are assembled for it
TORCH = (2, 11)


@dataclass(frozen=True)
class Gpu:
    name: str
    sm: int  # 90 for 9.0
    multiprocessors: int
    memory: int  # bytes
    l2: int  # bytes
    driver: int  # CUDA version of the driver, 13000 for 13.0
    torch: str
    python: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def find_gpu() -> Gpu | str:
    """The first GPU, or why the proof cannot run here."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed in this Python"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < TORCH:
        return f"PyTorch {torch.__version__} is older than {TORCH[0]}.{TORCH[1]}"
    if not torch.cuda.is_available():
        return "PyTorch sees no NVIDIA GPU"
    driver = _driver()
    if driver < DRIVER:
        return f"the driver is for CUDA {driver // 1000}.{driver % 1000 // 10}; the kernels need 13.0"
    facts = torch.cuda.get_device_properties(0)
    return Gpu(
        name=facts.name,
        sm=10 * facts.major + facts.minor,
        multiprocessors=facts.multi_processor_count,
        memory=facts.total_memory,
        l2=facts.L2_cache_size,
        driver=driver,
        torch=torch.__version__,
        python=platform.python_version(),
    )


def _driver() -> int:
    import ctypes

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int(0)
    return version.value if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0 else 0


def find_library() -> Path | str:
    """The built plugin library, or what is missing."""
    for name in ("libmm2c_plugins.so", "libmm2c_host.so"):
        if not (BUILD / name).is_file():
            return f"{BUILD / name} is not there: run `make plugins` on a machine that can, and bring plugins/build"
    return BUILD / "libmm2c_plugins.so"


def add_packages() -> None:
    """Make the project's packages importable from this checkout where they are not installed."""
    folder = Path(tempfile.mkdtemp(prefix="mm2c-gpu-"))
    for name, place in PACKAGES.items():
        (folder / name).symlink_to(ROOT / place, target_is_directory=True)
    sys.path.insert(0, str(folder))


def sanitizer() -> str | None:
    """Path of compute-sanitizer, if it is here."""
    for place in ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"):
        if found := shutil.which(place):
            return found
    return None


def smi() -> str:
    """Clocks and load as nvidia-smi tells them, for the report; empty where it does not answer."""
    query = "clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu"
    try:
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()
