"""The queue before admission: priority first, then arrival, and nobody waits for ever."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from mm2c_runtime.scheduling.sequence import Sequence

MAX_OVERTAKEN = 16  # admissions that may pass the oldest request before it is served whatever its priority
SLACK = 64  # places that a heap may keep of those that have left


class WaitingQueue:
    """Its cost does not grow with its length, except by the heap's logarithm."""

    def __init__(self) -> None:
        self._waiting: dict[str, Sequence] = {}  # in order of arrival
        self._turns: list[tuple[int, int, Sequence]] = []  # heap of priority and arrival; some have left
        self._overtaken = 0  # admissions since the oldest waiting request became the oldest

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(list(self._waiting.values()))

    def push(self, sequence: Sequence) -> None:
        self._waiting[sequence.id] = sequence
        heapq.heappush(self._turns, (sequence.priority, sequence.arrival, sequence))
        if len(self._turns) > 2 * len(self._waiting) + SLACK:
            self._turns = [turn for turn in self._turns if self._waits(turn[2])]
            heapq.heapify(self._turns)

    def next(self) -> Sequence | None:
        """Whose turn it is: the lowest ``priority``, of these the first to arrive. None when empty."""
        if not self._waiting:
            return None
        if self._overtaken >= MAX_OVERTAKEN:
            return self._oldest()
        while not self._waits(self._turns[0][2]):
            heapq.heappop(self._turns)
        return self._turns[0][2]

    def take(self, sequence: Sequence) -> None:
        """``sequence`` is admitted."""
        self._overtaken = 0 if sequence is self._oldest() else self._overtaken + 1
        del self._waiting[sequence.id]

    def remove(self, request_id: str) -> Sequence | None:
        """Forgets a request; None where it does not wait here."""
        if request_id not in self._waiting:
            return None
        if self._oldest().id == request_id:
            self._overtaken = 0
        return self._waiting.pop(request_id)

    def _waits(self, sequence: Sequence) -> bool:
        return self._waiting.get(sequence.id) is sequence

    def _oldest(self) -> Sequence:
        return next(iter(self._waiting.values()))
