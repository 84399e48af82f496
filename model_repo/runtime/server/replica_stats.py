"""The counters of all engines of one server, added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm2c_runtime.server.client import EngineClient

SUMMED = (
    "steps",
    "prefill_steps",
    "prefill_tokens",
    "decode_steps",
    "generated_tokens",
    "decode_steps_4_rows",
    "running",
    "waiting",
)


def replica_stats(socket: Path, timeout: float = 5.0) -> dict[str, Any]:
    """Of the engine behind ``socket`` and of those beside it, where the bundle has several replicas. Raises OSError or
    RequestError where one does not answer."""
    beside = [path for path in socket.parent.glob(f"{socket.name}.*") if path.suffix[1:].isdigit()]
    reports = []
    for path in [socket, *sorted(beside, key=lambda path: int(path.suffix[1:]))]:
        client = EngineClient(str(path), lambda event: None)
        client.connect(timeout)
        try:
            reports.append(client.stats(timeout))
        finally:
            client.close()
    return summed(reports)


def summed(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The counters added; medians, which cannot be, are in ``replicas`` alone: the reports themselves."""
    rows: Counter[str] = Counter()
    for report in reports:
        rows.update(report["rows_histogram"])
    histogram = {count: rows[count] for count in sorted(rows, key=int)}
    totals = {name: sum(report[name] for report in reports) for name in SUMMED}
    return {**totals, "rows_histogram": histogram, "replicas": list(reports)}
