"""A thread for every rank of one process, so that their devices work at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


class RankThreads:
    """Everything of a rank runs in its own thread: ONNX Runtime keeps a set of CUDA handles for each that it sees."""

    def __init__(self, ranks: int) -> None:
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"mm2c-rank{rank}") for rank in range(ranks)
        ]

    def each(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """The results of one call for each rank. All have ended when this returns, or raises what the first of the
        failed ones raised."""
        futures: list[Future[T]] = [
            thread.submit(call) for thread, call in zip(self._threads, calls, strict=True)
        ]
        wait(futures)
        return [future.result() for future in futures]

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()
