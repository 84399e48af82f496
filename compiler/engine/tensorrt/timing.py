"""TensorRT's timing cache: what the builder measured of layers on this GPU, kept for the next build."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

LIMIT = 1 << 30  # bytes of a file that is read at all


def attach(config: Any, path: Path) -> None:
    """Give ``config`` the measurements in ``path``. A file that is missing, or that the library does not take (another
    GPU, another version, damaged), counts as empty."""
    data = b""
    with suppress(OSError):
        if path.stat().st_size <= LIMIT:
            data = path.read_bytes()
    for known in (data, b""):
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def keep(config: Any, path: Path) -> None:
    """Write the measurements of ``config`` to ``path``, whole or not at all; a failure costs the next build time and
    nothing else."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(memoryview(cache.serialize()))
            os.replace(part, path)
        finally:
            with suppress(OSError):
                os.unlink(part)
