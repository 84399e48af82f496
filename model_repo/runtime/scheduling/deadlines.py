"""Who has run out of time, without looking at everybody at every step."""

from __future__ import annotations

import heapq

from mm2c_runtime.scheduling.sequence import Sequence
from mm2c_runtime.scheduling.waiting import SLACK


class Deadlines:
    def __init__(self) -> None:
        self._live: set[Sequence] = set()
        self._order: list[tuple[float, int, Sequence]] = []  # heap of deadline and arrival; some have ended

    def add(self, sequence: Sequence) -> None:
        if sequence.deadline is None:
            return
        self._live.add(sequence)
        heapq.heappush(self._order, (sequence.deadline, sequence.arrival, sequence))
        if len(self._order) > 2 * len(self._live) + SLACK:
            self._order = [entry for entry in self._order if entry[2] in self._live]
            heapq.heapify(self._order)

    def forget(self, sequence: Sequence) -> None:
        self._live.discard(sequence)

    def passed(self, now: float) -> list[Sequence]:
        """Those whose deadline has come by ``now``, each told once."""
        found = []
        while self._order and self._order[0][0] <= now:
            sequence = heapq.heappop(self._order)[2]
            if sequence in self._live:
                self._live.discard(sequence)
                found.append(sequence)
        return found
