"""What `mm2c verify` left in a bundle: the outcome of its comparison, and golden vectors."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mm2c_runtime.selfcheck_golden import GOLDEN, read_golden


def verified_facts(bundle: Path, report: Any) -> dict[str, Any] | None:
    """``report/verify.json`` in short; None for a bundle that was never verified, or whose report is of another form.

    ``worst``: the comparison nearest to, or furthest beyond, what is allowed. ``relative`` is max |Δ| in parts of the
    largest reference value, ``share`` max |Δ| in parts of what is allowed; both None for what is no number.
    ``written``: when the report was, UTC, as far as the file tells.
    """
    results = report.get("results") if isinstance(report, dict) else None
    if not isinstance(results, list) or not all(isinstance(one, dict) and "passed" in one for one in results):
        return None
    reference = report.get("reference")
    worst = max(results, key=_badness, default=None)
    return {
        "passed": all(one["passed"] for one in results),
        "kind": report.get("kind"),
        "comparisons": len(results),
        "failed": sum(not one["passed"] for one in results),
        "engines": sorted({str(one.get("engine", one.get("lowering"))) for one in results}),
        "worst": None
        if worst is None
        else {"where": _place(worst), "relative": worst.get("relative"), "share": _share(worst)},
        "reference": reference if isinstance(reference, dict) else {},
        "written": _written(bundle / "report" / "verify.json"),
    }


def golden_facts(bundle: Path) -> dict[str, Any] | None:
    """Sizes of the golden vectors; None where there are none. Raises BundleError where they cannot be read."""
    golden = read_golden(bundle)
    if golden is None:
        return None
    return {
        "file": GOLDEN,
        "bytes": (bundle / GOLDEN).stat().st_size,
        "rows": len(golden.rows),
        "tokens": sum(len(row.ids) for row in golden.rows),
        "logits": sum(len(row.logits) for row in golden.rows),
        "hidden": sum(len(row.positions) for row in golden.rows),
        "written": _written(bundle / GOLDEN),
    }


def _badness(one: dict[str, Any]) -> tuple[bool, float]:
    found = _share(one)
    if found is None:
        found = one.get("relative")
    return not one["passed"], float("inf") if found is None else float(found)


def _share(one: dict[str, Any]) -> float | None:
    error, allowed = one.get("error"), one.get("allowed")
    return error / allowed if error is not None and allowed else None


def _place(one: dict[str, Any]) -> str:
    if "case" in one:
        return f"{one['case']} on {one.get('lowering')}"
    layer = str(one.get("layer"))
    return f"{f'layer {layer}' if layer.isdigit() else f'the {layer}'} on {one.get('engine')}"


def _written(path: Path) -> str:
    return datetime.fromtimestamp(int(path.stat().st_mtime), timezone.utc).isoformat()
