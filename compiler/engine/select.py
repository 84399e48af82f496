"""Which engine a build takes on this machine, and why."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec

from mm2c.errors import UserError

BUILDABLE = ("onnxruntime",)
KNOWN = ("auto", "onnxruntime", "cuda", "tensorrt-rtx", "tensorrt")
SECONDS = 20  # that nvidia-smi gets: it starts the driver where nothing else holds it


@dataclass(frozen=True)
class Choice:
    engine: str
    reason: str


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU as nvidia-smi tells it, or None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs is no GPU to build for
        return None
    lines = asked.stdout.strip().splitlines()
    return lines[0].strip() if asked.returncode == 0 and lines else None


def select_engine(asked: str, *, runs: bool = True) -> Choice:
    """Resolve ``--engine``. ``runs`` False: graphs alone are wanted, the engine need not be installed.

    Raises:
        UserError: an engine that does not exist, is not built by this version, or is not installed here.
    """
    if asked not in KNOWN:
        raise UserError(f"no engine is called '{asked}'", remedy=f"one of: {', '.join(KNOWN)}")
    if asked not in ("auto", *BUILDABLE):
        raise UserError(
            f"this version of mm2c does not build the {asked} engine yet",
            where="--engine",
            remedy="--engine onnxruntime (or auto); the README's support table says what each version builds",
        )
    if runs:
        _check_installed()
    if asked != "auto":
        return Choice(asked, "asked for")
    gpu = gpu_name()
    if gpu is None:
        return Choice("onnxruntime", "no NVIDIA GPU on this machine")
    best = "tensorrt" if find_spec("tensorrt") else "cuda"
    return Choice(
        "onnxruntime",
        f"{gpu} is here, but this version does not build the {best} engine yet; runs on the CPU",
    )


def _check_installed() -> None:
    if find_spec("onnxruntime") is None:
        raise UserError(
            "ONNX Runtime is not installed",
            where="the Python environment of mm2c",
            remedy="pip install '.[cpu]' in mm2c's folder (never onnxruntime and onnxruntime-gpu together)",
        )
