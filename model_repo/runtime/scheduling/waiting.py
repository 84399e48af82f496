"""The queue before admission: priority first, then arrival, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Iterator

from mm2c_runtime.scheduling.sequence import Sequence

MAX_OVERTAKEN = 16  # admissions that may pass the oldest request before it is served whatever its priority


class WaitingQueue:
    def __init__(self) -> None:
        self._waiting: dict[str, Sequence] = {}  # in order of arrival
        self._overtaken = 0  # admissions since the oldest waiting request became the oldest

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(list(self._waiting.values()))

    def push(self, sequence: Sequence) -> None:
        self._waiting[sequence.id] = sequence

    def next(self) -> Sequence | None:
        """Whose turn it is: the lowest ``priority``, of these the first to arrive. None when empty."""
        if not self._waiting:
            return None
        if self._overtaken >= MAX_OVERTAKEN:
            return self._oldest()
        return min(self._waiting.values(), key=lambda sequence: (sequence.priority, sequence.arrival))

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

    def _oldest(self) -> Sequence:
        return next(iter(self._waiting.values()))
