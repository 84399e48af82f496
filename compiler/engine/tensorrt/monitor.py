"""How far a build is, from the phases that the library reports, and the way to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Position:
    """A place in a tree of phases, as a share of the whole that never falls.

    Each phase takes up one step of the phase around it; what lies beside the first phase of all is not counted. Safe
    to call from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: list[tuple[str, int, int]] = []  # name, steps, steps that are done; outermost first
        self._share = 0.0

    def start(self, name: str, steps: int) -> float:
        with self._lock:
            self._phases.append((name, max(steps, 1), 0))
            return self._share

    def step(self, name: str, step: int) -> float:
        with self._lock:
            index = self._find(name)
            if index is not None:
                _, steps, done = self._phases[index]
                self._phases[index] = (name, steps, min(max(done, step + 1), steps))
            return self._moved()

    def finish(self, name: str) -> float:
        with self._lock:
            index = self._find(name)
            if index is not None:
                del self._phases[index]
                if not self._phases:
                    self._share = 1.0
            return self._moved()

    def _find(self, name: str) -> int | None:
        """The innermost phase of that name."""
        for index in range(len(self._phases) - 1, -1, -1):
            if self._phases[index][0] == name:
                return index
        return None

    def _moved(self) -> float:
        share, width = 0.0, 1.0
        for _, steps, done in self._phases:
            width /= steps
            share += done * width
        self._share = max(self._share, min(share, 1.0))
        return self._share


class Stop:
    """Whether the build is to end: set by a signal's handler, read between steps."""

    def __init__(self) -> None:
        self.asked = False


def make_monitor(trt: Any, told: Callable[[float, str], None], stop: Stop) -> Any:
    """An IProgressMonitor of module ``trt`` that calls ``told`` with the share that is done and the phase, and ends the
    build at the next step once ``stop`` is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._position = Position()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            told(self._position.start(phase_name, num_steps), phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            told(self._position.step(phase_name, step), phase_name)
            return not stop.asked

        def phase_finish(self, phase_name: str) -> None:
            told(self._position.finish(phase_name), phase_name)

    return Monitor()
