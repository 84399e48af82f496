"""Whether a bundle's engine can run on this machine, asked before a server or rank processes start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm2c.errors import UserError


def require_gpu(bundle: Path, manifest: Any) -> None:
    """Raises UserError where the bundle is for the cuda engine and there is no NVIDIA GPU."""
    if manifest.engine != "cuda":
        return
    from mm2c.engine.select import find_gpu

    if find_gpu() is None:
        raise UserError(
            "the bundle is for the cuda engine, and this machine has no NVIDIA GPU",
            where=str(bundle),
            remedy="run it on a machine with one, or build it with --engine onnxruntime for this one",
        )
