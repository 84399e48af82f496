"""What `mm2c inspect` tells of a verified bundle, and of one that is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm2c.bundle.verified import golden_facts, verified_facts
from mm2c.cli.inspect_tables import verified
from mm2c_runtime.errors import BundleError
from mm2c_runtime.selfcheck_golden import GOLDEN, Golden, GoldenRow

REFERENCE = {"reference": "transformers MiniMaxM2", "transformers": "5.23.0", "torch": "2.13.0"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    report = tmp_path / "report"
    report.mkdir()
    (report / "verify.json").touch()
    os.utime(report / "verify.json", (1_700_000_000, 1_700_000_000))
    return tmp_path


def layer(number: str, error: float | None, *, passed: bool = True) -> dict[str, Any]:
    """As the comparison layer by layer writes it."""
    return {
        "engine": "cuda", "layer": number, "error": error, "allowed": 0.5, "passed": passed,
        "relative": None if error is None else error / 4,
    }  # fmt: skip


def lines(bundle: Path, report: Any, golden: Any = None, checkpoint: Any = "there") -> str:
    facts = {
        "checkpoint": checkpoint,
        "reports": {"verify": report} if report else {},
        "verified": verified_facts(bundle, report),
        "golden": golden,
    }
    return "\n".join(verified(facts))


def test_layer_by_layer(bundle: Path) -> None:
    results = [layer("embedding", 0.0), layer("3", 0.25), layer("logits", 0.1)]
    report = {"kind": "streamed", "results": results, "reference": REFERENCE}
    found = verified_facts(bundle, report)
    assert found is not None
    assert found["passed"]
    assert (found["comparisons"], found["failed"], found["engines"]) == (3, 0, ["cuda"])
    assert found["worst"] == {"where": "layer 3 on cuda", "relative": 0.0625, "share": 0.5}
    assert found["written"] == "2023-11-14T22:13:20+00:00"
    shown = lines(bundle, report)
    assert "verify    passed: streamed, 3 comparisons; worst: layer 3 on cuda, 0.062 of the largest" in shown
    assert "50% of what is allowed" in shown
    assert "against transformers MiniMaxM2 (transformers 5.23.0, torch 2.13.0)" in shown
    assert "written 2023-11-14 22:13 UTC" in shown


def test_whole_models_have_no_share(bundle: Path) -> None:
    results = [
        {"lowering": "fast", "case": "prefill", "error": 1.0, "relative": 1e-7, "passed": True},
        {"lowering": "portable", "case": "decode", "error": 2.0, "relative": 2e-7, "passed": True},
    ]
    shown = lines(bundle, {"kind": "whole model", "results": results, "reference": REFERENCE})
    assert "worst: decode on portable, 2e-07 of the largest value off\n" in shown


@pytest.mark.parametrize("error", [0.4, None])
def test_a_failure_is_the_worst_whatever_its_figures(bundle: Path, error: float | None) -> None:
    report = {"kind": "streamed", "results": [layer("1", 0.45), layer("2", error, passed=False)]}
    shown = lines(bundle, report)
    assert "verify    1 FAILED: streamed, 2 comparisons; worst: layer 2 on cuda, " in shown
    assert ("not a number" in shown) == (error is None)
    assert "against the reference; written" in shown


@pytest.mark.parametrize("report", [{"summary": "all of [it]"}, {"results": 3}, ["x"]])
def test_a_report_of_another_form_is_shown_as_it_is(bundle: Path, report: Any) -> None:
    assert verified_facts(bundle, report) is None
    assert lines(bundle, report).startswith("verify    ")


def test_nothing_was_verified(bundle: Path) -> None:
    shown = lines(bundle, None)
    assert "verify    no report: `mm2c verify`" in shown
    assert "golden    no vectors" in shown
    assert lines(bundle, None, checkpoint=None) == ""  # built from config.json alone
    assert golden_facts(bundle) is None
    assert verified_facts(bundle, {"results": [], "kind": "streamed"})["worst"] is None  # type: ignore[index]


def test_golden_vectors_are_counted(bundle: Path) -> None:
    rows = tuple(
        GoldenRow(
            tuple(range(tokens)),
            prompt,
            np.zeros((tokens - prompt + 1, 5), np.float32),
            np.zeros(tokens - prompt + 1, np.float32),
            np.zeros(2, np.int64),
            np.zeros((3, 2, 4), np.float32),
        )
        for tokens, prompt in ((8, 6), (3, 1))
    )
    (bundle / GOLDEN).write_bytes(Golden(rows, {}).to_bytes())
    found = golden_facts(bundle)
    assert found is not None
    assert {name: found[name] for name in ("rows", "tokens", "logits", "hidden")} == {
        "rows": 2, "tokens": 11, "logits": 6, "hidden": 4,
    }  # fmt: skip
    assert found["bytes"] == (bundle / GOLDEN).stat().st_size
    assert "golden    vectors of 2 rows, 11 tokens, logits of 6 (" in lines(bundle, None, found)
    (bundle / GOLDEN).write_bytes(b"no")
    with pytest.raises(BundleError, match="golden vectors cannot be read"):
        golden_facts(bundle)
