"""How many requests each replica runs, known to all stubs of a server: a few counters in a file that they map."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

STUBS = ("minimax_m2", "minimax_m2_unary")  # each writes counters of its own, so that none waits for another


class Load:
    """Counters i32[stubs, replicas] in ``file``; ``stub``: a row of this process alone, which starts at zero."""

    def __init__(self, file: Path, stub: str, replicas: int) -> None:
        size = 4 * len(STUBS) * replicas
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)  # zeros, where it was shorter
            self._memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._counts = np.frombuffer(self._memory, np.int32).reshape(len(STUBS), replicas)
        self._own = self._counts[STUBS.index(stub)]
        self._own[:] = 0

    def put(self, replica: int, requests: int) -> None:
        """``requests`` of this stub run there now."""
        self._own[replica] = requests

    def of(self, replica: int) -> int:
        """Requests of all stubs."""
        return int(self._counts[:, replica].sum())
