"""How long the device was busy with a part of a step."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """``start`` and ``stop`` mark places in the device's work, without waiting for it; ``seconds`` between them is
    known once it is done. Where there is no device to wait for, the host's clock tells."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self._on_device else []
        self._times = [0.0, 0.0]

    def start(self) -> None:
        self._mark(0)

    def stop(self) -> None:
        self._mark(1)

    def _mark(self, which: int) -> None:
        if self._on_device:
            self._marks[which].record()
        else:
            self._times[which] = time.perf_counter()

    def seconds(self) -> float:
        """Of the last pair, after the device was waited for."""
        if self._on_device:
            return float(self._marks[0].elapsed_time(self._marks[1])) / 1e3
        return self._times[1] - self._times[0]
