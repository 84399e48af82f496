"""`mm2c serve --self-check`: what cannot be done as asked is refused before a server starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mm2c.serve.self_check import served_self_check
from mm2c_runtime.errors import BundleError
from mm2c_runtime.selfcheck_golden import GOLDEN

CPU: Any = SimpleNamespace(engine="onnxruntime")
GPU: Any = SimpleNamespace(engine="cuda")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MM2C_SELF_CHECK", raising=False)


@pytest.mark.parametrize("manifest", [CPU, GPU])
@pytest.mark.parametrize("word", ["first", "never", None])
def test_the_engine_is_told_what_was_asked(manifest: Any, word: str | None, tmp_path: Path) -> None:
    assert served_self_check(tmp_path, manifest, word) == word


def test_always_needs_golden_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="no golden vectors"):
        served_self_check(tmp_path, CPU, "always")
    monkeypatch.setenv("MM2C_SELF_CHECK", "always")
    with pytest.raises(BundleError, match="no golden vectors"):
        served_self_check(tmp_path, CPU, None)
    assert served_self_check(tmp_path, CPU, "never") == "never"
    (tmp_path / "report").mkdir()
    (tmp_path / GOLDEN).touch()
    assert served_self_check(tmp_path, CPU, "always") == "always"
    assert served_self_check(tmp_path, CPU, None) is None


def test_other_words_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="'sometimes', which is not one of always, first, never") as refused:
        served_self_check(tmp_path, GPU, "sometimes")
    assert refused.value.where == "--self-check"
    monkeypatch.setenv("MM2C_SELF_CHECK", "often")
    with pytest.raises(BundleError, match="often") as refused:
        served_self_check(tmp_path, GPU, None)
    assert "MM2C_SELF_CHECK" in refused.value.where
