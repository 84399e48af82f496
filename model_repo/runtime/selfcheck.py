"""The engine against the bundle's golden vectors before it serves: does this machine compute the model?"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.selfcheck_golden import GOLDEN, read_golden
from mm2c_runtime.selfcheck_run import Figure, run_golden

if TYPE_CHECKING:
    from mm2c_runtime.executors.base import Executor
    from mm2c_runtime.manifest import Manifest

Mode = Literal["always", "first", "never"]
MODES = ("always", "first", "never")
VARIABLE = "MM2C_SELF_CHECK"
_NVIDIA = Path("/proc/driver/nvidia")
log = logging.getLogger("mm2c.selfcheck")


def self_check_mode(asked: str | None, *, gpu: bool) -> Mode:
    """``asked``, else ``$MM2C_SELF_CHECK``, else "first" on a GPU and "never" elsewhere. Raises BundleError for
    another word."""
    word = asked or os.environ.get(VARIABLE) or ("first" if gpu else "never")
    for mode in MODES:
        if word == mode:
            return mode  # type: ignore[return-value]
    raise BundleError(
        f"the self-check is to run {word!r}, which is not one of {', '.join(MODES)}",
        where="--self-check" if asked else f"environment variable {VARIABLE}",
        remedy="leave it out: a GPU is checked the first time that it serves a bundle",
    )


def self_check(
    folder: Path, manifest: Manifest, executor: Executor, mode: Mode, *, device: str = "", gpu: bool = False
) -> None:
    """Run the bundle's golden rows. ``first``: only where no earlier start of this build on this ``device`` (default:
    the GPUs and driver of this machine) has passed, and the bundle has goldens. ``gpu``: ONNX Runtime runs on them.

    Raises BundleError with the figures where a position is outside its tolerance, or where ``mode`` is "always" and
    the bundle has none.
    """
    if mode == "never":
        return
    if mode == "always":
        require_golden(folder)
    golden = read_golden(folder)
    if golden is None:
        return
    marker = _marker(folder, manifest, device or device_name(manifest.engine, gpu=gpu))
    if mode == "first" and marker is not None and marker.is_file():
        log.info("self-check: passed on an earlier start on this device")
        return
    began = time.monotonic()
    try:
        figures = run_golden(executor, golden, engine=manifest.engine, layers=manifest.model.layers)
    except RequestError as error:
        raise BundleError(
            f"self-check: the engine failed on the golden rows: {error.message}",
            where=str(folder),
            remedy="see the log; another GPU or driver may be at fault",
        ) from error
    refuse_failures(folder, figures)
    judged = [figure for figure in figures if figure.judged]
    if not judged:
        log.warning("self-check: no golden position can be judged with this engine's limits and arithmetic")
        return
    worst = max(judged, key=lambda figure: figure.error / figure.allowed)
    log.info(
        "self-check: %d positions agree with the reference, worst %.2g of the largest logit (%.2g allowed), %.1f s",
        len(judged),
        worst.error,
        worst.allowed,
        time.monotonic() - began,
    )
    if marker is not None:
        _remember(marker, {"error": worst.error, "allowed": worst.allowed, "positions": len(judged)})


def require_golden(folder: Path) -> None:
    """Raises BundleError where the bundle has no golden vectors."""
    if not (folder / GOLDEN).is_file():
        raise BundleError(
            "the bundle has no golden vectors to check the engine with",
            where=str(folder / GOLDEN),
            remedy="write them with `mm2c verify`, or start without the self-check",
        )


def checked(
    folder: Path, manifest: Manifest, executor: Executor, asked: str | None, *, gpu: bool
) -> Executor:
    """``executor`` after its self-check; it is closed where that fails."""
    try:
        self_check(folder, manifest, executor, self_check_mode(asked, gpu=gpu), gpu=gpu)
    except BaseException:
        executor.close()
        raise
    return executor


def refuse_failures(folder: Path, figures: Sequence[Figure]) -> None:
    """Raises BundleError that names the worst position, where one is outside its tolerance."""
    failed = [figure for figure in figures if not figure.passed]
    if not failed:
        return
    worst = max(failed, key=lambda f: f.error / f.allowed if f.error == f.error else float("inf"))
    flips = sum(figure.flip for figure in failed)
    raise BundleError(
        f"self-check: the engine does not compute the model: {len(failed)} of {len(figures)} golden positions are off, "
        f"{flips} with another greedy token; worst is token {worst.token} of row {worst.row} ({worst.kind}), off by "
        f"{worst.error:.3g} of the largest logit where {worst.allowed:.3g} is allowed",
        where=str(folder),
        remedy="do not serve it: run `mm2c verify` and the GPU's own diagnostics. `mm2c serve --self-check never`, or "
        "MM2C_SELF_CHECK=never, starts without the check",
    )


def device_name(engine: str, *, gpu: bool = False) -> str:
    """What a passed check holds for: the GPUs and their driver, or for ONNX Runtime its version and this machine's
    architecture, or with ``gpu`` its version and these; empty where that cannot be told."""
    if engine == "onnxruntime":
        import onnxruntime

        name = f"onnxruntime {onnxruntime.__version__} {os.uname().machine}"
        if not gpu:
            return name
        gpus = _gpus()
        return f"{name}; {gpus}" if gpus else ""
    return _gpus()


def _gpus() -> str:
    try:
        driver = (_NVIDIA / "version").read_text("utf-8").splitlines()[0]
        models = [
            line.split(":", 1)[1].strip()
            for path in sorted((_NVIDIA / "gpus").glob("*/information"))
            for line in path.read_text("utf-8").splitlines()
            if line.startswith("Model")
        ]
        if models:
            return "; ".join([driver, *models])
    except (OSError, IndexError):
        pass
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def _marker(folder: Path, manifest: Manifest, device: str) -> Path | None:
    """The file that remembers a passed check of this build, these goldens and this device."""
    entry = manifest.files.get(GOLDEN)
    if not device or entry is None:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    key = json.dumps([manifest.build_key, entry.sha256, device, visible])
    return _user_cache() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _user_cache() -> Path:
    """In ``$MM2C_CACHE``, else in ``mm2c`` under ``$XDG_CACHE_HOME`` or ``~/.cache``, as the compiler's."""
    if own := os.environ.get("MM2C_CACHE"):
        return Path(own) / "selfcheck"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "mm2c" / "selfcheck"


def _remember(marker: Path, content: dict[str, Any]) -> None:
    """Best effort: without a writable cache folder the next start checks again."""
    temporary = marker.with_name(f"{marker.name}.{os.getpid()}")
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content), "utf-8")
        temporary.replace(marker)
    except OSError as error:
        log.warning("self-check: that it passed cannot be remembered: %s", error)
