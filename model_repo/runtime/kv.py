"""Linear KV rows: who sits where, and the copies that keep the decoding rows together."""

from __future__ import annotations

from dataclasses import dataclass

from mm2c_runtime.step import RowCopy


@dataclass(slots=True)
class _Row:
    reserved: int  # tokens set aside when it was allocated
    written: int  # positions that hold a token


class RowPool:
    """Places of at most ``rows`` sequences of at most ``context`` tokens each, ``budget`` tokens in all.

    The rule: the m decoding sequences sit in rows 0 … m-1, which a decode step binds as one block. Prefilling
    sequences sit anywhere above, with holes between them. ``allocate`` takes the lowest free row, so that
    sequences that finish their prefill in order of arrival are promoted without a copy. Row ``rows`` is a
    spare one: with it there is always a free row to move a sequence to that is in the way.

    Copies are returned in the order in which they must be carried out, before the next step of any kind; each
    one moves the sequence of its source row. What the moved row held stays behind and means nothing. Wrong
    calls (a row that is not allocated, a promotion twice) raise ValueError."""

    def __init__(self, rows: int, context: int, budget: int | None = None) -> None:
        if rows < 1 or context < 1:
            raise ValueError(f"{rows} rows of {context} tokens: both must be at least 1")
        self.rows, self.context = rows, context
        self.budget = rows * context if budget is None else budget
        self._rows: dict[int, _Row] = {}
        self._decoding = 0
        self._reserved = 0

    @property
    def free(self) -> int:
        """Sequences that may still be allocated, by their number alone."""
        return self.rows - len(self._rows)

    @property
    def free_tokens(self) -> int:
        """Tokens of the budget that are not set aside."""
        return self.budget - self._reserved

    @property
    def decoding(self) -> int:
        """m: rows 0 … m-1 decode."""
        return self._decoding

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of up to ``tokens`` tokens (prompt and answer) can be allocated now."""
        return self.free > 0 and tokens <= self.free_tokens and self.could_fit(tokens)

    def could_fit(self, tokens: int) -> bool:
        """Whether it could be, were the pool empty."""
        return 0 < tokens <= min(self.context, self.budget)

    def allocate(self, tokens: int) -> int:
        """The row of a new, prefilling sequence; ``tokens`` are set aside. ValueError unless it fits."""
        if not self.fits(tokens):
            raise ValueError(
                f"no row for {tokens} tokens: {self.free} rows and {self.free_tokens} tokens are free"
            )
        row = self._lowest_free()
        self._rows[row] = _Row(tokens, 0)
        self._reserved += tokens
        return row

    def advance(self, row: int, tokens: int) -> None:
        """A step wrote ``tokens`` more positions of ``row``. ValueError beyond what was set aside."""
        state = self._state(row)
        if tokens < 0 or state.written + tokens > state.reserved:
            raise ValueError(f"row {row}: {state.written} + {tokens} tokens, {state.reserved} were set aside")
        state.written += tokens

    def take_blocks(self, row: int) -> list[int]:
        """Pages that ``row`` was given and no step has been told of; linear rows have none."""
        self._state(row)
        return []

    def length(self, row: int) -> int:
        """Positions of ``row`` that hold a token."""
        return self._state(row).written

    def promote(self, row: int) -> list[RowCopy]:
        """The prefilled sequence of ``row`` decodes from now on, in row m: at most two copies, often none."""
        self._state(row)
        target = self._decoding
        if row < target:
            raise ValueError(f"row {row} decodes already")
        copies = []
        if row != target:
            if target in self._rows:
                copies.append(self._move(target, self._lowest_free()))
            copies.append(self._move(row, target))
        self._decoding += 1
        return copies

    def release(self, row: int) -> RowCopy | None:
        """Free a row; the last decoding row moves into the hole that a decoding one leaves."""
        self._reserved -= self._state(row).reserved
        del self._rows[row]
        if row >= self._decoding:
            return None
        self._decoding -= 1
        return self._move(self._decoding, row) if row != self._decoding else None

    def _move(self, source: int, target: int) -> RowCopy:
        state = self._rows[target] = self._rows.pop(source)
        return RowCopy(source, target, state.written)

    def _lowest_free(self) -> int:
        return next(row for row in range(self._decoding, self.rows + 1) if row not in self._rows)

    def _state(self, row: int) -> _Row:
        state = self._rows.get(row)
        if state is None:
            raise ValueError(f"row {row} is not allocated")
        return state
