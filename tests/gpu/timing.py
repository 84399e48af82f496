"""Times on a GPU: medians of CUDA-graph replays with a cold L2 cache, and the copy bandwidth to compare with."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_WARM_UP, _REPEATS = 3, 21
_FLUSH = 4  # times the L2 cache is overwritten with, so that nothing of the last run is left in it


@dataclass(frozen=True)
class Time:
    """Seconds of one run; ``spread`` is (p90 - p10) / median."""

    median: float
    spread: float


class Clock:
    """Times functions that launch on the current stream. A function is captured once and replayed; before each
    replay more memory than the L2 cache holds is written."""

    def __init__(self, l2: int) -> None:
        self._flush = torch.empty(max(_FLUSH * l2, 64 << 20), dtype=torch.uint8, device="cuda")

    def graph(self, run: Callable[[], Any], repeats: int = _REPEATS, *, cold: bool = True) -> Time:
        return self._replays(capture(run), repeats, cold)

    def eager(self, run: Callable[[], Any], repeats: int = _REPEATS, *, cold: bool = True) -> Time:
        """The same without a graph: what a caller sees who launches each kernel by itself."""
        for _ in range(_WARM_UP):
            run()
        return self._replays(run, repeats, cold)

    def _replays(self, run: Callable[[], Any], repeats: int, cold: bool) -> Time:
        found = []
        for _ in range(repeats):
            if cold:
                self._flush.fill_(1)
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        found.sort()
        median = statistics.median(found)
        return Time(median, (found[int(0.9 * (repeats - 1))] - found[int(0.1 * (repeats - 1))]) / median)


def capture(run: Callable[[], Any]) -> Callable[[], None]:
    """``run`` as a CUDA graph; it must do the same each time and keep its tensors. Warmed up on a side stream,
    as capturing asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay  # type: ignore[no-any-return]


def copy_bandwidth(clock: Clock, size: int = 4 << 30) -> float:
    """Bytes a second, read and written, of a device-to-device copy of ``size`` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * size / clock.eager(lambda: target.copy_(source), 9).median


def read_bandwidth(clock: Clock, size: int = 4 << 30) -> float:
    """Bytes a second of a reduction that only reads ``size`` bytes: what a kernel that streams weights could
    reach."""
    source = torch.empty(size // 4, dtype=torch.float32, device="cuda").normal_()
    return size / clock.eager(lambda: source.sum(), 9).median
