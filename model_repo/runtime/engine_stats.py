"""What the engine has done and what each step cost besides the model."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
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
        self._steps = self._prefills = self._prefill_tokens = self._decodes = self._tokens = 0
        self._costs: deque[tuple[int, float, float | None, float]] = deque(maxlen=WINDOW)
        self._forwards: deque[float] = deque(maxlen=WINDOW)

    def add(
        self,
        batches: Sequence[StepBatch],
        *,
        forward: float | None,
        execute: float,
        schedule: float,
        detokenise: float,
    ) -> None:
        """One step of the groups that took part, in seconds. ``forward``: the part of ``execute`` spent in the
        model, where it is known. A step in which one of them prefilled tells nothing of what decoding costs."""
        prefills = [batch for batch in batches if batch.kind == "prefill"]
        rows = sum(len(batch.rows) for batch in batches if batch.kind == "decode")
        with self._lock:
            self._steps += 1
            self._prefills += len(prefills)
            self._prefill_tokens += sum(row.new_len for batch in prefills for row in batch.rows)
            if rows:
                self._decodes += 1
                self._rows[rows] += 1
            if not prefills:
                sample = None if forward is None else execute - forward
                self._costs.append((rows, schedule, sample, detokenise))
                self._forwards.append(execute if forward is None else forward)
            self._tokens += sum(row.sample for batch in batches for row in batch.rows)

    def report(self) -> dict[str, Any]:
        """steps, prefill_steps (of each group), prefill_tokens, decode_steps, generated_tokens, rows_histogram {rows
        of all groups: decode steps}, decode_steps_4_rows (of at least four rows), forward_ms (median of a decode step),
        overhead_us {scheduler, sampler, detokenizer, total} and overhead_us_by_rows {rows: total}: medians
        per decode step."""
        with self._lock:
            rows, costs, forwards = dict(self._rows), list(self._costs), list(self._forwards)
            steps = self._steps
            counts = (self._prefills, self._prefill_tokens, self._decodes, self._tokens)
        totals: dict[int, list[float]] = {}
        for count, schedule, sample, detokenise in costs:
            totals.setdefault(count, []).append(schedule + (sample or 0.0) + detokenise)
        return {
            "steps": steps,
            "prefill_steps": counts[0],
            "prefill_tokens": counts[1],
            "decode_steps": counts[2],
            "generated_tokens": counts[3],
            "rows_histogram": {str(count): rows[count] for count in sorted(rows)},
            "decode_steps_4_rows": sum(n for count, n in rows.items() if count >= 4),
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
