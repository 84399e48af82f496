"""The checkpoint of a bundle without weights files, found and recognised before a server starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mm2c.errors import UserError
from mm2c_runtime.weights.checkpoint import StoredCheckpoint, checkpoint_folder

if TYPE_CHECKING:
    from mm2c_runtime.manifest import Manifest


def served_checkpoint(manifest: Manifest, given: Path | None) -> Path | None:
    """Where the engine reads the weights, absolute; None for a bundle that has its own.

    Raises:
        UserError: ``given`` for a bundle that has weights.
        BundleError: it is not there, or another checkpoint.
    """
    if manifest.weights == "copy" or manifest.checkpoint is None:
        if given is None:
            return None
        raise UserError(
            "the bundle has weights of its own and reads no checkpoint",
            where=f"--checkpoint {given}",
            remedy="leave --checkpoint out; to serve other weights, build a bundle from them",
        )
    folder = checkpoint_folder(manifest.checkpoint, given).resolve()
    StoredCheckpoint.open(folder, manifest.checkpoint).close()
    return folder
