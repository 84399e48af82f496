"""What every executor asks of a batch before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm2c_runtime.step import StepBatch

if TYPE_CHECKING:  # not at run time: the GPU's checks run where pydantic is not
    from mm2c_runtime.manifest import Limits


@dataclass(frozen=True, slots=True)
class Together:
    """What the attention groups of a joint step must agree on. ``tokens``: of the group with most of them, padding
    included. ``decode``: no group prefills."""

    tokens: int
    decode: bool


def together(batches: Sequence[StepBatch | None], limits: Limits) -> Together:
    """Of batches that are not checked yet: one that will be refused counts for no more than a full one."""
    some = [batch for batch in batches if batch is not None and batch.rows]
    decode = all(batch.kind == "decode" for batch in some)
    most = limits.max_rows if decode else max(limits.prefill_chunk, limits.max_rows)
    sizes = [len(batch.rows) * max(len(row.tokens) for row in batch.rows) for batch in some]
    return Together(max(1, min(most, max(sizes, default=1))), decode)


def check_batch(batch: StepBatch, limits: Limits) -> int:
    """The width of a batch, its largest ``new_len``. Raises ValueError for one against the protocol."""
    rows = batch.rows
    if not rows:
        raise ValueError("a step needs at least one row")
    for place, row in enumerate(rows, rows[0].row):
        if row.row != place or not 0 <= place <= limits.max_rows:
            raise ValueError(f"row {row.row} in place {place}: a step's rows are neighbours in order")
        if not 1 <= row.new_len == len(row.tokens) or row.past_len < 0:
            raise ValueError(f"row {row.row}: {len(row.tokens)} tokens, new_len {row.new_len}")
        if row.past_len + row.new_len > limits.context:
            raise ValueError(
                f"row {row.row}: {row.past_len} + {row.new_len} tokens in {limits.context} places"
            )
    width = max(row.new_len for row in rows)
    if batch.kind == "decode" and (width != 1 or rows[0].row != 0):
        raise ValueError("a decode step has one token for each of the rows from 0 on")
    return width
