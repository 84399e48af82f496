"""The self-check on the toy bundle, whose logits can be written down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundle import expected, write_toy_bundle

from mm2c.bundle.checksums import entries
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.selfcheck import checked, device_name, self_check, self_check_mode
from mm2c_runtime.selfcheck_golden import GOLDEN, Golden, GoldenRow, read_golden
from mm2c_runtime.selfcheck_run import allowed_error, run_golden

ROWS = (((3, 1, 4, 1, 5, 9, 2, 6), 6), ((5, 3, 5), 1), ((8, 9, 7, 9, 3), 3))


def golden(off: float = 0.0) -> Golden:
    rows = []
    for ids, prompt in ROWS:
        logits = np.stack([expected(list(ids[:n])) for n in range(prompt, len(ids) + 1)])
        logits[-1, 0] += np.float32(off)
        nothing = np.full(len(logits), -1, np.float32)
        rows.append(
            GoldenRow(ids, prompt, logits, nothing, np.zeros(0, np.int64), np.zeros((0, 0, 4), np.float32))
        )
    return Golden(tuple(rows), {"reference": "numpy"})


def made(folder: Path, values: Golden | None) -> Manifest:
    manifest = write_toy_bundle(folder)
    if values is not None:
        (folder / "report").mkdir()
        (folder / GOLDEN).write_bytes(values.to_bytes())
    return manifest.model_copy(update={"files": entries(folder, {})})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM2C_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MM2C_SELF_CHECK", raising=False)


@pytest.fixture
def right(tmp_path: Path) -> Iterator[tuple[Path, Manifest, OnnxRuntimeExecutor]]:
    folder = tmp_path / "right"
    manifest = made(folder, golden())
    executor = OnnxRuntimeExecutor(folder, manifest, threads=1)
    yield folder, manifest, executor
    executor.close()


@pytest.fixture
def wrong(tmp_path: Path) -> Iterator[tuple[Path, Manifest, OnnxRuntimeExecutor]]:
    folder = tmp_path / "wrong"
    manifest = made(folder, golden(off=0.01))
    executor = OnnxRuntimeExecutor(folder, manifest, threads=1)
    yield folder, manifest, executor
    executor.close()


def test_goldens_come_back_as_they_were(tmp_path: Path) -> None:
    made(tmp_path / "a", golden())
    found = read_golden(tmp_path / "a")
    assert found is not None
    assert found.to_bytes() == golden().to_bytes()
    assert [(row.ids, row.prompt) for row in found.rows] == list(ROWS)
    assert read_golden(tmp_path) is None


@pytest.mark.parametrize("damage", ["cut", "format", "no safetensors"])
def test_damaged_goldens_are_refused(tmp_path: Path, damage: str) -> None:
    made(tmp_path / "a", golden())
    path = tmp_path / "a" / GOLDEN
    content = path.read_bytes()
    if damage == "cut":
        content = content[:-8]
    elif damage == "format":
        content = content.replace(b'format\\": 1', b'format\\": 9')
    else:
        content = b"nothing"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="golden vectors cannot be read"):
        read_golden(tmp_path / "a")


def test_every_position_is_compared(right: Any) -> None:
    _, _, executor = right
    figures = run_golden(executor, golden(), engine="onnxruntime", layers=1)
    decode = min(len(ids) - prompt for ids, prompt in ROWS)
    assert len(figures) == len(ROWS) * (1 + decode)
    assert {(f.row, f.token) for f in figures if f.kind == "prefill"} == {(0, 5), (1, 0), (2, 2)}
    assert all(f.passed and f.judged for f in figures)
    again = run_golden(executor, golden(), engine="onnxruntime", layers=1)
    assert again == figures


def test_rows_that_do_not_fit_are_left_out(right: Any) -> None:
    folder, manifest, _ = right
    small = OnnxRuntimeExecutor(folder, manifest, threads=1, rows=1, context=6)
    figures = run_golden(small, golden(), engine="onnxruntime", layers=1)
    assert {f.row for f in figures} == {1}
    small.close()


def test_what_is_wrong_is_told_with_figures(wrong: Any) -> None:
    folder, manifest, executor = wrong
    with pytest.raises(BundleError, match=r"[1-3] of \d+ golden positions are off") as caught:
        self_check(folder, manifest, executor, "always")
    assert "1e-05 is allowed" in str(caught.value)
    assert "MM2C_SELF_CHECK=never" in str(caught.value)


def test_a_failed_check_closes_the_executor(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, manifest, executor = wrong
    closed = []
    monkeypatch.setattr(executor, "close", lambda: closed.append(True))
    with pytest.raises(BundleError):
        checked(folder, manifest, executor, "first", gpu=False)
    assert closed


def test_a_passed_check_is_remembered_for_this_device(right: Any, tmp_path: Path) -> None:
    folder, manifest, executor = right
    asked: list[int] = []

    class Counting:
        limits, kv = executor.limits, executor.kv

        def forward(self, batch: Any) -> Any:
            asked.append(1)
            return executor.forward(batch)

    counting: Any = Counting()
    self_check(folder, manifest, counting, "first", device="a GPU")
    first = len(asked)
    assert first
    self_check(folder, manifest, counting, "first", device="a GPU")
    assert len(asked) == first
    self_check(folder, manifest, counting, "first", device="another GPU")
    assert len(asked) == 2 * first
    self_check(folder, manifest, counting, "always", device="a GPU")
    assert len(asked) == 3 * first
    other = manifest.model_copy(update={"build_key": "another"})
    self_check(folder, other, counting, "first", device="a GPU")
    assert len(asked) == 4 * first
    markers = list((tmp_path / "cache/selfcheck").iterdir())
    assert len(markers) == 3


def test_a_failed_check_is_not_remembered(wrong: Any, tmp_path: Path) -> None:
    folder, manifest, executor = wrong
    for _ in range(2):
        with pytest.raises(BundleError):
            self_check(folder, manifest, executor, "first", device="a GPU")
    assert not (tmp_path / "cache/selfcheck").exists()


def test_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert self_check_mode(None, gpu=True) == "first"
    assert self_check_mode(None, gpu=False) == "never"
    monkeypatch.setenv("MM2C_SELF_CHECK", "always")
    assert self_check_mode(None, gpu=False) == "always"
    assert self_check_mode("never", gpu=True) == "never"
    monkeypatch.setenv("MM2C_SELF_CHECK", "sometimes")
    with pytest.raises(BundleError, match="sometimes"):
        self_check_mode(None, gpu=True)
    assert device_name("onnxruntime").startswith("onnxruntime ")


def test_a_bundle_without_goldens(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    manifest = made(folder, None)
    nobody: Any = None
    self_check(folder, manifest, nobody, "first")
    self_check(folder, manifest, nobody, "never")
    with pytest.raises(BundleError, match="no golden vectors"):
        self_check(folder, manifest, nobody, "always")


def test_tolerances() -> None:
    assert allowed_error("onnxruntime", 62, -1.0) == (1e-5, True)
    few, judged = allowed_error("cuda", 2, -1.0)
    many, _ = allowed_error("cuda", 62, 0.01)
    assert judged
    assert 0.02 < few < many < 0.15
    assert allowed_error("cuda", 62, 0.2) == (0.4, True)
    assert not allowed_error("cuda", 62, 0.9)[1]
