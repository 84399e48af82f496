"""Graphs of the cache are taken only where they are the ones that the build would make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mm2c.pipeline import build_bundle
from mm2c.request import BuildRequest
from mm2c_runtime.weights.recipe import Source
from mm2c_runtime.weights.recipe_file import read_recipes


@pytest.mark.parametrize("first_tied", [True, False])
def test_a_tied_and_an_untied_head_have_graphs_of_their_own(
    random_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first_tied: bool,
) -> None:
    monkeypatch.setenv("MM2C_CACHE", str(tmp_path / "cache"))
    for tied in (first_tied, not first_tied):
        checkpoint = random_checkpoint(layers=1, quant="bf16", seed=7, tie_word_embeddings=tied)
        output = tmp_path / f"tied-{tied}"
        report = build_bundle(BuildRequest(source=str(checkpoint), output=output))
        head = read_recipes(output / "rank0" / "weights.safetensors")["lm_head.weight"]
        assert isinstance(head, Source)
        assert head.key == ("model.embed_tokens.weight" if tied else "lm_head.weight")
        assert not report.reused
