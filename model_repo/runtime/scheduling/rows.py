"""Who owns which cache row, and the copies that keep the decoding rows at 0 … n-1."""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList

from mm2c_runtime.scheduling.sequence import Sequence
from mm2c_runtime.step import RowCopy


class Rows:
    def __init__(self, count: int) -> None:
        self._owner: list[Sequence | None] = [None] * count
        self._released: list[int] = []

    @property
    def free(self) -> int:
        return self._owner.count(None)

    def compact(self, decoding: int) -> bool:
        """Whether rows 0 … decoding-1 are all owned."""
        return None not in self._owner[:decoding]

    def acquire(self, sequence: Sequence, *, above: int) -> None:
        """Gives ``sequence`` the lowest free row from ``above`` on."""
        row = self._owner.index(None, above)
        self._owner[row], sequence.row = sequence, row

    def release(self, sequence: Sequence) -> None:
        assert self._owner[sequence.row] is sequence
        self._owner[sequence.row] = None
        self._released.append(sequence.row)
        sequence.row = -1

    def take_released(self) -> list[int]:
        """Rows freed since the last call: their sampler state can go."""
        released, self._released = self._released, []
        return released

    def close_holes(self, decoding: ReadOnlyList[Sequence]) -> list[RowCopy]:
        """Moves the decoding sequences that lie at or above row n into the free rows below n, n = how many
        decode."""
        count = len(decoding)
        holes = [row for row in range(count) if self._owner[row] is None]
        copies = []
        for sequence in decoding:
            if sequence.row >= count:
                target = holes.pop(0)
                copies.append(RowCopy(sequence.row, target, sequence.past_len))
                self._owner[sequence.row], self._owner[target] = None, sequence
                sequence.row = target
        return copies
