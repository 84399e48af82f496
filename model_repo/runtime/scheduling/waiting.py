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

    def pop(self) -> Sequence:
        """The next request to admit. Lower ``priority`` first; KeyError when empty."""
        if not self._waiting:
            raise KeyError("nothing is waiting")
        oldest = next(iter(self._waiting.values()))
        chosen = oldest
        if self._overtaken < MAX_OVERTAKEN:
            chosen = min(self._waiting.values(), key=lambda sequence: (sequence.priority, sequence.arrival))
        self._overtaken = 0 if chosen is oldest else self._overtaken + 1
        del self._waiting[chosen.id]
        return chosen

    def remove(self, request_id: str) -> Sequence | None:
        if self._waiting and next(iter(self._waiting)) == request_id:
            self._overtaken = 0
        return self._waiting.pop(request_id, None)
