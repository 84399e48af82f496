"""Damages bytes of one tensor in a copy of a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from mm2c.checkpoint import Checkpoint


def with_bytes(source: Path, target: Path, tensor: str, offset: int, data: bytes) -> Path:
    """A copy of ``source`` whose ``tensor`` holds ``data`` from byte ``offset`` on."""
    shutil.copytree(source, target)
    with Checkpoint.open(target) as checkpoint:
        info = checkpoint.tensors[tensor]
    with (target / info.file).open("r+b") as file:
        file.seek(info.offset + offset)
        file.write(data)
    return target
