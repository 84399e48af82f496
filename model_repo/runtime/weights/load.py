"""A bundle's tensors made from its checkpoint at a start, on several threads, with word of how far it is."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED as FIRST
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

from mm2c_runtime.weights.checkpoint import StoredCheckpoint
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.evaluate import nbytes
from mm2c_runtime.weights.fill import Piece, split
from mm2c_runtime.weights.recipe import Recipe

THREADS = 16
PIECE = 4 << 20  # bytes of a tensor that a thread makes at a time
LOG_SECONDS = 5.0
log = logging.getLogger("mm2c.weights")
Item = TypeVar("Item")
Key = TypeVar("Key")


def default_threads() -> int:
    return min(THREADS, len(os.sched_getaffinity(0)))


def load_tensors(
    recipes: Mapping[Key, Recipe], checkpoint: StoredCheckpoint, threads: int | None = None
) -> dict[Key, np.ndarray[Any, Any]]:
    """Every tensor in memory of its own; beside them, each thread holds a few pieces of ``PIECE`` bytes.

    Raises BundleError where the checkpoint cannot be read, or changed meanwhile.
    """
    tensors = {name: np.empty(recipe.shape, NUMPY[recipe.dtype]) for name, recipe in recipes.items()}
    meter = Meter(sum(map(nbytes, recipes.values())))
    every = (piece for name, recipe in recipes.items() for piece in split(recipe, tensors[name], PIECE))

    def fill(piece: Piece) -> int:
        piece.fill(checkpoint)
        return piece.target.nbytes

    run_all(fill, every, threads or default_threads(), meter.advance)
    checkpoint.check_unchanged()
    meter.end()
    return tensors


def run_all(
    work: Callable[[Item], int], items: Iterable[Item], threads: int, done: Callable[[int], None]
) -> None:
    """``work`` on every item, a few ahead of what is done; its results go to ``done``, called from this thread. The
    first error ends it, after what had begun."""
    with ThreadPoolExecutor(threads, "mm2c-weights") as pool:
        running: set[Future[int]] = set()
        try:
            for item in items:
                running.add(pool.submit(work, item))
                if len(running) >= 2 * threads:
                    running = _taken(running, done)
            while running:
                running = _taken(running, done)
        finally:
            for future in running:
                future.cancel()


def _taken(running: set[Future[int]], done: Callable[[int], None]) -> set[Future[int]]:
    finished, rest = wait(running, return_when=FIRST)
    for future in finished:
        done(future.result())
    return rest


class Meter:
    """Logs how much of ``total`` bytes is there, every few seconds and at the end."""

    def __init__(self, total: int) -> None:
        self.total, self.there = total, 0
        self._began = self._said = time.monotonic()

    def advance(self, size: int) -> None:
        self.there += size
        now = time.monotonic()
        if now - self._said >= LOG_SECONDS:
            self._said = now
            speed = self.there / (now - self._began)
            left = (self.total - self.there) / speed if speed else 0.0
            log.info(
                "weights from the checkpoint: %.2f of %.2f GB, %.2f GB/s, %.0f s left",
                self.there / 1e9,
                self.total / 1e9,
                speed / 1e9,
                left,
            )

    def end(self) -> None:
        seconds = time.monotonic() - self._began
        speed = self.there / 1e9 / max(seconds, 1e-9)
        log.info(
            "weights from the checkpoint: %.2f GB in %.1f s, %.2f GB/s", self.there / 1e9, seconds, speed
        )
