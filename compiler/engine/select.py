"""Which engine a build takes on this machine, and why."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec

from mm2c.config import Engine
from mm2c.errors import UserError

BUILDABLE: tuple[Engine, ...] = ("onnxruntime", "cuda", "tensorrt-rtx", "tensorrt")
KNOWN = ("auto", *BUILDABLE)
SUPPORTED = (
    "8.0",
    "8.6",
    "8.7",
    "8.9",
    "9.0",
    "10.0",
    "12.0",
)  # compute capabilities that kernels are built for
HIDDEN = ("", "-1")  # values of $CUDA_VISIBLE_DEVICES that show CUDA no device
SECONDS = 20  # that nvidia-smi gets: it starts the driver where nothing else holds it


@dataclass(frozen=True)
class Choice:
    engine: Engine
    reason: str


@dataclass(frozen=True)
class Gpu:
    """``capability``: compute capability as "9.0"; empty where the driver does not tell it."""

    name: str
    capability: str


def find_gpu() -> Gpu | None:
    """The first NVIDIA GPU as nvidia-smi tells it, or None where there is none or ``$CUDA_VISIBLE_DEVICES`` hides
    all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN or shutil.which("nvidia-smi") is None:
        return None
    for fields in ("name,compute_cap", "name"):  # drivers older than 510 do not know compute_cap
        line = _asked(fields)
        if line is not None:
            name, _, capability = line.rpartition(",") if "," in fields else (line, "", "")
            return Gpu(name.strip(), capability.strip())
    return None


def _asked(fields: str) -> str | None:
    try:
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs is no GPU to build for
        return None
    lines = asked.stdout.strip().splitlines()
    return lines[0] if asked.returncode == 0 and lines else None


def select_engine(asked: str, *, runs: bool = True) -> Choice:
    """Resolve ``--engine``. ``runs`` False: graphs alone are wanted, the engine need not be installed.

    Raises:
        UserError: an engine that does not exist, or is not installed here. (What the TensorRT engines need beside
            their library is looked for when the build knows its model.)
    """
    if asked not in KNOWN:
        raise UserError(f"no engine is called '{asked}'", remedy=f"one of: {', '.join(KNOWN)}")
    if asked == "auto":
        choice = _best()
    else:
        choice = Choice(BUILDABLE[BUILDABLE.index(asked)], "asked for")
    if runs and choice.engine == "onnxruntime":
        _check_installed()
    return choice


def _best() -> Choice:
    gpu = find_gpu()
    if gpu is None:
        return Choice("onnxruntime", "no NVIDIA GPU on this machine")
    if not gpu.capability:
        return Choice(
            "onnxruntime",
            f"{gpu.name} is here, but its driver is too old for the cuda engine; runs on the CPU",
        )
    if gpu.capability not in SUPPORTED:
        return Choice(
            "onnxruntime",
            f"{gpu.name} is here, but the cuda engine has no kernels for compute capability {gpu.capability} "
            f"(it has {', '.join(SUPPORTED)}); runs on the CPU",
        )
    reason = f"{gpu.name} is here (compute capability {gpu.capability})"
    if find_spec("tensorrt") is None:
        return Choice("cuda", reason)
    from mm2c.engine.tensorrt.library import find_library

    try:
        return Choice("tensorrt", f"{reason}, and so is {find_library('tensorrt').name}")
    except UserError as error:
        return Choice("cuda", f"{reason}; {error.what}")


def _check_installed() -> None:
    if find_spec("onnxruntime") is None:
        raise UserError(
            "ONNX Runtime is not installed",
            where="the Python environment of mm2c",
            remedy="pip install '.[cpu]' in mm2c's folder (never onnxruntime and onnxruntime-gpu together)",
        )
