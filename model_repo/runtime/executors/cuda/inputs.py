"""What a step reads besides the cache: ids, lengths and block-table rows, in one copy to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mm2c_runtime.executors.cuda.aligned import ALIGNMENT, aligned_bytes
from mm2c_runtime.step import RowStep

_ID, _LENGTH = 8, 4  # bytes of an id, and of a row's past_len, new_len and row number


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Views of the device's buffer. ``ids`` i64[rows, width]; ``past``, ``new`` and ``table_row`` i32[rows]."""

    ids: Tensor
    past: Tensor
    new: Tensor
    table_row: Tensor


class InputBuffer:
    """Room for steps of at least ``ids`` ids in at least ``rows`` rows, at aligned addresses that never change.

    Its host side is pinned: it may be filled again once the step before has ended.
    """

    def __init__(self, ids: int, rows: int, device: torch.device) -> None:
        self.ids = ids + -ids % (ALIGNMENT // _ID)  # so that every part begins at a multiple of ALIGNMENT
        self.rows = rows + -rows % (ALIGNMENT // _LENGTH)
        size = _ID * self.ids + 3 * _LENGTH * self.rows
        self._device = aligned_bytes(size, device).zero_()
        self._pinned = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._ids, self._past, self._new, self._row = (part.numpy() for part in self._parts(self._pinned))

    def _parts(self, raw: Tensor) -> list[Tensor]:
        """ids i64[ids], past, new and row i32[rows]."""
        begin, size = _ID * self.ids, _LENGTH * self.rows
        lengths = [raw[begin + n * size : begin + (n + 1) * size].view(torch.int32) for n in range(3)]
        return [raw[:begin].view(torch.int64), *lengths]

    def views(self, rows: int, width: int) -> StepInputs:
        """Where a step of ``rows`` rows of ``width`` tokens reads."""
        ids, past, new, row = self._parts(self._device)
        return StepInputs(ids[: rows * width].view(rows, width), past[:rows], new[:rows], row[:rows])

    def fill(self, steps: Sequence[RowStep], rows: int, width: int) -> None:
        """Put ``steps`` there, padded to ``rows`` rows by repeating the last one: a repeated row writes what that
        row writes where it writes it, and asks for no other experts. Shorter rows are padded with id 0."""
        count = len(steps)
        ids = self._ids[: rows * width].reshape(rows, width)
        if width == 1:
            ids[:count, 0] = [step.tokens[0] for step in steps]
        else:
            ids[:count] = 0
            for place, step in enumerate(steps):
                ids[place, : step.new_len] = step.tokens
        ids[count:] = ids[count - 1]
        for column, values in (
            (self._past, [step.past_len for step in steps]),
            (self._new, [step.new_len for step in steps]),
            (self._row, [step.row for step in steps]),
        ):
            column[:count] = values
            column[count:rows] = values[-1]
        self._device.copy_(self._pinned, non_blocking=True)
