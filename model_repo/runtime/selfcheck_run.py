"""Golden rows through an executor: prefill in chunks, then ragged decode steps of all rows of a group."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.page_pool import pool_for
from mm2c_runtime.step import RowCopy, RowStep, StepBatch

if TYPE_CHECKING:
    from mm2c_runtime.executors.base import Executor
    from mm2c_runtime.selfcheck_golden import Golden, GoldenRow

Logits = NDArray[np.float32]
EXACT = 1e-5  # of the largest logit: fp32 engines
# of 16-bit engines: rounding to 2^-9 of a number in every layer, of which the errors add up like a random walk
ROUNDED = 2.0**-6
MEASURED = 2.0  # times what the same arithmetic was off when the goldens were made
CHAOTIC = 0.25  # measured error from which a position says nothing: a router's choice hung on rounding


@dataclass(frozen=True)
class Figure:
    """One golden position: ``token`` counts from the row's first. ``error`` and ``allowed`` are in parts of the
    largest reference logit. ``flip``: another greedy token, though the reference's best two are apart."""

    row: int
    token: int
    kind: Literal["prefill", "decode"]
    error: float
    allowed: float
    flip: bool
    judged: bool

    @property
    def passed(self) -> bool:
        if not self.judged:
            return math.isfinite(self.error)
        return self.error <= self.allowed and not self.flip

    def as_json(self) -> dict[str, Any]:
        error = self.error if math.isfinite(self.error) else None
        return {**asdict(self), "error": error, "passed": self.passed}


def allowed_error(engine: str, layers: int, measured: float) -> tuple[float, bool]:
    """How far a position's logits may be off in parts of the largest, and whether it is judged at all."""
    if engine == "onnxruntime":
        return EXACT, True
    allowed = ROUNDED * math.sqrt(max(layers, 4))
    return max(allowed, MEASURED * measured), measured <= CHAOTIC


def run_golden(executor: Executor, golden: Golden, *, engine: str, layers: int) -> list[Figure]:
    """Every golden position that the executor's limits have room for. Leaves its rows as if released."""
    drive = _Drive(executor)
    figures: list[Figure] = []
    rows: dict[int, GoldenRow] = {}

    def judge(index: int, row: GoldenRow, n: int, found: Logits) -> None:
        measured = float(row.measured[n])
        allowed, judged = allowed_error(engine, layers, measured)
        figures.append(_figure(index, row, n, found, allowed, judged))

    for index, row in enumerate(golden.rows):
        if drive.has_room(index, row):
            rows[index] = row
            judge(index, row, 0, drive.prefill(index, row))
    for n in range(min((len(row.ids) - row.prompt for row in rows.values()), default=0)):
        for index, found in drive.decode(
            {index: row.ids[row.prompt + n] for index, row in rows.items()}
        ).items():
            judge(index, rows[index], n + 1, found)
    return figures


def _figure(index: int, row: GoldenRow, n: int, found: Logits, allowed: float, judged: bool) -> Figure:
    want = row.logits[n]
    scale = max(float(np.abs(want).max()), float(np.finfo(np.float32).tiny))
    error = float(np.abs(found - want).max()) / scale  # numpy's max keeps a NaN
    best = np.partition(want, -2)[-2:] if len(want) > 1 else np.array([-np.inf, want[0]])
    clear = float(best[1] - best[0]) > 2 * allowed * scale
    flip = clear and int(found.argmax()) != int(want.argmax())
    kind: Literal["prefill", "decode"] = "decode" if n else "prefill"
    return Figure(index, row.prompt + n - 1, kind, error, allowed, flip, judged)


class _Drive:
    """The executor as the scheduler drives it, with pools of its own."""

    def __init__(self, executor: Executor) -> None:
        self._executor, self._limits = executor, executor.limits
        self._groups = executor.kv.groups
        self._pools = [pool_for(executor.limits, executor.kv) for _ in range(self._groups)]
        self._copies: list[list[RowCopy]] = [[] for _ in range(self._groups)]
        self._rows: list[list[int]] = [[] for _ in range(self._groups)]  # golden rows in cache order

    def has_room(self, index: int, row: GoldenRow) -> bool:
        """Whether the row's group can hold it beside those that it holds."""
        group = index % self._groups
        return len(self._rows[group]) < self._limits.max_rows and self._pools[group].fits(len(row.ids))

    def prefill(self, index: int, row: GoldenRow) -> Logits:
        """The logits behind the prompt; the row decodes from then on."""
        group = index % self._groups
        pool = self._pools[group]
        place = pool.allocate(len(row.ids))
        logits = None
        for start in range(0, row.prompt, self._limits.prefill_chunk):
            part = list(row.ids[start : min(start + self._limits.prefill_chunk, row.prompt)])
            step = RowStep(place, part, start, len(part), False, blocks=_blocks(pool, place))
            batches: list[StepBatch | None] = [None] * self._groups
            batches[group] = self._batch(group, "prefill", [step])
            logits = self._last(self._forward(batches)[group], [step])
            pool.advance(place, len(part))
        self._copies[group] += pool.promote(place)
        self._rows[group].append(index)
        assert logits is not None
        first: Logits = logits[0]
        return first

    def decode(self, tokens: dict[int, int]) -> dict[int, Logits]:
        """One token for every row, all groups together."""
        batches: list[StepBatch | None] = []
        steps: list[list[RowStep]] = []
        for group, own in enumerate(self._rows):
            pool = self._pools[group]
            rows = [
                RowStep(place, [tokens[index]], pool.length(place), 1, False, blocks=_blocks(pool, place))
                for place, index in enumerate(own)
            ]
            for place in range(len(own)):
                pool.advance(place, 1)
            steps.append(rows)
            batches.append(self._batch(group, "decode", rows) if rows else None)
        found: dict[int, Logits] = {}
        for own, rows, logits in zip(self._rows, steps, self._forward(batches), strict=True):
            if rows:
                found.update(zip(own, self._last(logits, rows), strict=True))
        return found

    def _batch(self, group: int, kind: Literal["prefill", "decode"], rows: list[RowStep]) -> StepBatch:
        copies, self._copies[group] = self._copies[group], []
        return StepBatch(0, kind, rows, copies)

    def _forward(self, batches: list[StepBatch | None]) -> list[Logits | None]:
        if self._groups > 1:
            return list(self._executor.forwards(batches))
        assert batches[0] is not None
        return [self._executor.forward(batches[0])]

    @staticmethod
    def _last(logits: Logits | None, rows: list[RowStep]) -> Logits:
        """Of each row's last token: programs with all-token logits return [rows, width, vocab]."""
        assert logits is not None
        if logits.ndim == 2:
            return logits
        last: Logits = logits[np.arange(len(rows)), [row.new_len - 1 for row in rows]]
        return last


def _blocks(pool: Any, row: int) -> list[int]:
    """Pages that the executor has not been told of; linear rows have none."""
    return list(pool.take_blocks(row))
