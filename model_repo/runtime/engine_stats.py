"""What the engine has done and what each step cost besides the model."""

from __future__ import annotations

from collections import Counter, deque
from statistics import median
from threading import Lock
from typing import Any

from mm2c_runtime.step import StepBatch

WINDOW = 2000  # steps that the medians look back over


class Statistics:
    """Written by the engine thread, read by any."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._rows: Counter[int] = Counter()
        self._prefills = self._prefill_tokens = self._decodes = self._tokens = 0
        self._costs: deque[tuple[int, float, float | None, float]] = deque(maxlen=WINDOW)
        self._forwards: deque[float] = deque(maxlen=WINDOW)

    def add(
        self, batch: StepBatch, *, forward: float | None, execute: float, schedule: float, detokenise: float
    ) -> None:
        """One step, in seconds. ``forward``: the part of ``execute`` spent in the model, where it is
        known."""
        with self._lock:
            if batch.kind == "prefill":
                self._prefills += 1
                self._prefill_tokens += sum(row.new_len for row in batch.rows)
            else:
                self._decodes += 1
                self._rows[len(batch.rows)] += 1
                sample = None if forward is None else execute - forward
                self._costs.append((len(batch.rows), schedule, sample, detokenise))
                self._forwards.append(execute if forward is None else forward)
            self._tokens += sum(row.sample for row in batch.rows)

    def report(self) -> dict[str, Any]:
        """steps, prefill_steps, prefill_tokens, decode_steps, generated_tokens, rows_histogram {rows:
        decode steps}, decode_steps_4_rows (of at least four rows), forward_ms (median of a decode step),
        overhead_us {scheduler, sampler, detokenizer, total} and overhead_us_by_rows {rows: total}: medians
        per decode step."""
        with self._lock:
            rows, costs, forwards = dict(self._rows), list(self._costs), list(self._forwards)
            counts = (self._prefills, self._prefill_tokens, self._decodes, self._tokens)
        totals: dict[int, list[float]] = {}
        for count, schedule, sample, detokenise in costs:
            totals.setdefault(count, []).append(schedule + (sample or 0.0) + detokenise)
        return {
            "steps": counts[0] + counts[2],
            "prefill_steps": counts[0],
            "prefill_tokens": counts[1],
            "decode_steps": counts[2],
            "generated_tokens": counts[3],
            "rows_histogram": {str(count): rows[count] for count in sorted(rows)},
            "decode_steps_4_rows": sum(steps for count, steps in rows.items() if count >= 4),
            "forward_ms": round(median(forwards) * 1e3, 3) if forwards else None,
            "overhead_us": {
                "scheduler": _microseconds([cost[1] for cost in costs]),
                "sampler": _microseconds([cost[2] for cost in costs if cost[2] is not None]),
                "detokenizer": _microseconds([cost[3] for cost in costs]),
                "total": _microseconds([value for values in totals.values() for value in values]),
            },
            "overhead_us_by_rows": {str(count): _microseconds(totals[count]) for count in sorted(totals)},
        }


def _microseconds(seconds: list[float]) -> float | None:
    return round(median(seconds) * 1e6, 1) if seconds else None
