"""Kernels that TensorRT-RTX compiled on this machine, kept for the next start: a plan holds none for a certain GPU."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger("mm2c.tensorrt")


class KernelCache:
    """The library's own cache, an IRuntimeCache, which all contexts share; ``path`` None: not kept. ``writes``: whether
    this process saves it, of ranks with the same plans one does. The library refuses what another release or GPU
    wrote."""

    def __init__(self, path: Path | None, *, writes: bool) -> None:
        self._path, self._writes = path, writes
        self._cache: Any = None

    def use(self, config: Any) -> None:
        """Have the contexts of an IRuntimeConfig share it."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._cache is None:
                return
            self._read()
        if not config.set_runtime_cache(self._cache):
            log.warning("the library does not take a cache of its kernels; they are compiled at every start")

    def save(self) -> None:
        """Best effort: without a writable cache folder the next start compiles again."""
        if self._cache is None or self._path is None or not self._writes:
            return
        memory = self._cache.serialize()
        if memory is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(memoryview(memory))
            temporary.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            log.warning("compiled kernels cannot be kept: %s", error)

    def close(self) -> None:
        self._cache = None

    def _read(self) -> None:
        if self._path is None:
            return
        if not self._path.is_file():
            log.info(
                "TensorRT-RTX compiles the plans' kernels for this GPU, which the next start finds again"
            )
            return
        try:
            data = self._path.read_bytes()
        except OSError as error:
            log.warning("kept kernels cannot be read: %s", error)
            return
        if not self._cache.deserialize(data):
            log.info("kept kernels are of another release or GPU: they are compiled again")


def kernel_cache_path(version: str, device: str, plans: Sequence[str]) -> Path:
    """In ``$MM2C_CACHE``, else in ``mm2c`` under ``$XDG_CACHE_HOME`` or ``~/.cache``. ``plans``: hashes of the plans,
    ``device``: what GPU they run on."""
    if own := os.environ.get("MM2C_CACHE"):
        folder = Path(own)
    else:
        home = os.environ.get("XDG_CACHE_HOME")
        folder = (Path(home) if home else Path.home() / ".cache") / "mm2c"
    key = hashlib.sha256(json.dumps([version, device, *plans]).encode()).hexdigest()[:32]
    return folder / "tensorrt-kernels" / f"{key}.bin"
