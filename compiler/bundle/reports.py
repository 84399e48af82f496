"""What a bundle's ``report/`` says, as it stands there and in a line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mm2c.bundle.rank_graph_file import REBUILD
from mm2c_runtime.errors import BundleError

REPORTS = ("memory", "shards", "proofs", "quantization", "verify")
_SHOWN = 6  # figures of a report that has no summary of its own


def read_reports(bundle: Path) -> dict[str, Any]:
    """The JSON documents of ``report/`` by name; those of REPORTS that are not there are left out.

    Raises:
        BundleError: one is not valid JSON.
    """
    found = {}
    for name in REPORTS:
        path = bundle / "report" / f"{name}.json"
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{path.name} cannot be read: {error}", where=str(path), remedy=REBUILD
            ) from None
    return found


def summary_of(report: Any) -> str:
    """A report in one line: its own ``summary``, else its plain figures, those of ``total`` among them; where it is
    made of parts alone, those of each."""
    if not isinstance(report, dict):
        return f"{len(report)} entries" if isinstance(report, list) else str(report)
    if isinstance(report.get("summary"), str):
        return str(report["summary"])
    total = report.get("total")
    plain = _figures({**report, **(total if isinstance(total, dict) else {})})
    compared = _results(report.get("results"))
    if plain or compared:
        return ", ".join(part for part in (plain, compared) if part)
    parts = {name: _figures(part) for name, part in report.items() if isinstance(part, dict)}
    return "; ".join(f"{name}: {text}" for name, text in parts.items() if text) or f"{len(report)} entries"


def _results(results: Any) -> str:
    """``16 comparisons, all passed, at most 3e-07 off`` of a list of outcomes."""
    if not isinstance(results, list) or not all(isinstance(r, dict) and "passed" in r for r in results):
        return ""
    failed = sum(not result["passed"] for result in results)
    errors = [r["relative"] for r in results if isinstance(r.get("relative"), (int, float))]
    worst = f", at most {max(errors):.2g} off in parts of the reference" if errors else ""
    return f"{len(results)} comparisons, {f'{failed} FAILED' if failed else 'all passed'}{worst}"


def _figures(values: dict[str, Any]) -> str:
    plain = [
        f"{name.replace('_', ' ')} {_figure(value)}"
        for name, value in values.items()
        if isinstance(value, (bool, int, float, str))
    ]
    return ", ".join(plain[:_SHOWN])


def _figure(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
