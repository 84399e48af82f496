"""Pieces: boxes of checkpoint tensors with the places that their entries take in a rank's tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

Box = tuple[tuple[int, int], ...]  # (start, stop) of every axis


class Axis(NamedTuple):
    """One axis of a rank's tensor: entry ``first + i`` of the checkpoint tensor's axis ``source``, for i < ``size``,
    stands at ``start + step·i`` and the ``repeat - 1`` places behind it.

    ``source`` -1: no axis of the checkpoint tensor; the piece takes ``size`` places from ``start`` on.
    """

    source: int
    first: int
    size: int
    start: int
    step: int = 1
    repeat: int = 1

    @property
    def stop(self) -> int:
        """Behind the last place."""
        return self.start + self.step * (self.size - 1) + self.repeat

    @property
    def places(self) -> int:
        return self.size * self.repeat

    def shifted(self, by: int) -> Axis:
        return self._replace(start=self.start + by)

    def part(self, begin: int, end: int) -> Axis:
        """Entries ``begin`` to ``end`` of the ``size``."""
        return self._replace(first=self.first + begin, size=end - begin, start=self.start + self.step * begin)

    def cut(self, low: int, high: int) -> Iterator[Axis]:
        """What stands in [low, high), counted from ``low``: one axis, or up to three where repeats are divided."""
        begin = max(-(-(low - self.start - self.repeat + 1) // self.step), 0)
        end = min(-(-(high - self.start) // self.step), self.size)
        whole_begin, whole_end = begin, end
        for edge in sorted({begin, end - 1}):
            if not begin <= edge < end:
                continue
            first = self.start + self.step * edge
            if first >= low and first + self.repeat <= high:
                continue
            left, right = max(first, low), min(first + self.repeat, high)
            if edge == begin:
                whole_begin = edge + 1
            if edge == end - 1:
                whole_end = edge
            if left < right:
                yield Axis(self.source, self.first + edge, 1, left - low, 1, right - left)
        if whole_begin < whole_end:
            yield self.part(whole_begin, whole_end).shifted(-low)

    def repeated(self, times: int) -> Axis:
        return self._replace(start=self.start * times, step=self.step * times, repeat=self.repeat * times)

    def single(self) -> Iterator[Axis]:
        """The same places, none repeated."""
        for nth in range(self.repeat):
            yield self._replace(start=self.start + nth, repeat=1)

    def meets(self, other: Axis) -> bool:
        """Whether the two share a place."""
        if self.start >= other.stop or other.start >= self.stop:
            return False
        if self.step == other.step and max(self.repeat, other.repeat) < self.step:
            return self.step == 1 or self._same_phase(other)
        return True

    def _same_phase(self, other: Axis) -> bool:
        ahead = (other.start - self.start) % self.step
        return ahead < self.repeat or self.step - ahead < other.repeat


class Piece(NamedTuple):
    """A box of one checkpoint tensor in a rank's tensor; ``axes`` are the rank's tensor's, in order.

    ``slot`` and ``suffix`` give the key: see ``Run``. ``dtype`` and ``shape`` are the whole checkpoint tensor's.
    ``how`` names the conversions that its bytes go through, outermost last; none: bytes are moved as they are.
    """

    slot: int
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    how: tuple[str, ...] = ()
    suffix: str = ""

    def with_axis(self, at: int, axis: Axis) -> Piece:
        return self._replace(axes=(*self.axes[:at], axis, *self.axes[at + 1 :]))

    def source_box(self) -> Box:
        """Of the checkpoint tensor."""
        box: list[tuple[int, int]] = [(0, 0)] * len(self.shape)
        for axis in self.axes:
            if axis.source >= 0:
                box[axis.source] = (axis.first, axis.first + axis.size)
        return tuple(box)

    def along(self, source: int) -> Axis:
        """The axis that holds axis ``source`` of the checkpoint tensor."""
        return next(axis for axis in self.axes if axis.source == source)

    def target_of(self, source: int) -> int:
        """Its number in the rank's tensor."""
        return next(n for n, axis in enumerate(self.axes) if axis.source == source)


class Run(NamedTuple):
    """Pieces of equal form: ``keys[i][slot]`` is the checkpoint tensor of a piece at place ``start + i`` of axis
    ``lead`` (the experts of a layer). ``lead`` -1: one row of keys and no such axis."""

    lead: int
    start: int
    keys: list[tuple[str, ...]]
    pieces: tuple[Piece, ...]

    def key(self, piece: Piece, row: int = 0) -> str:
        return self.keys[row][piece.slot] + piece.suffix

    def stretched(self, piece: Piece) -> tuple[Axis, ...]:
        """The axes of all rows of a piece together."""
        if self.lead < 0:
            return piece.axes
        return piece.with_axis(self.lead, Axis(-1, 0, len(self.keys), self.start)).axes

    def apart(self) -> Iterator[Run]:
        """Row by row, without a lead axis."""
        if self.lead < 0:
            yield self
            return
        for row, keys in enumerate(self.keys):
            placed = Axis(-1, 0, 1, self.start + row)
            yield Run(-1, 0, [keys], tuple(piece.with_axis(self.lead, placed) for piece in self.pieces))
