"""Whether a bundle's engine can run on this machine, asked before a server or rank processes start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm2c.errors import UserError


def require_gpu(bundle: Path, manifest: Any) -> None:
    """Raises UserError where the bundle's plans are still to be built, or where it is for an engine of GPUs and none is
    here."""
    if manifest.tensorrt is not None and manifest.tensorrt.deferred:
        raise UserError(
            "the bundle's plans are still to be built",
            where=str(bundle),
            remedy=f"`mm2c build --finish {bundle}`, on the machine that serves it",
        )
    if manifest.engine == "onnxruntime":
        return
    from mm2c.engine.select import find_gpu

    if find_gpu() is None:
        raise UserError(
            f"the bundle is for the {manifest.engine} engine, and this machine has no NVIDIA GPU",
            where=str(bundle),
            remedy="run it on a machine with one, or build it with --engine onnxruntime for this one",
        )
