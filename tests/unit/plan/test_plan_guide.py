"""vLLM's guide beside our figures: its numbers are quoted, ours are computed, and the arithmetic adds up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from test_plan_layouts import ASK, FP8, M27

from mm2c.config import Mapping, ModelConfig, Rope, WeightFormats
from mm2c.plan import guide
from mm2c.plan.ask import Ask
from mm2c.plan.compare import base_of, compare
from mm2c.plan.gpus import find_gpu

ROOT = Path(__file__).resolve().parents[3]
FOUND = compare(ASK)


def of(gpus: int, size: int, mapping: Mapping, card: str) -> object:
    return next(
        one
        for one in FOUND
        if (one.row.gpus, one.row.size, one.ours.mapping, one.ours.gpu.name) == (gpus, size, mapping, card)
    )


def test_weights_and_cache_are_the_guide_s_up_to_their_units() -> None:
    base = base_of(ASK)
    assert 214 < base.weights.total / 2**30 < guide.WEIGHTS_GB < base.weights.total / 1e9 < 231
    million = base.kv_per_token * 10**6
    assert million / 2**30 == pytest.approx(guide.KV_GB_PER_MILLION, rel=0.02)
    assert million / 1e9 == pytest.approx(253.952)
    by_hand = 2 * 62 * 8 * 128 * 2  # K and V, layers, KV heads, width, bf16
    assert base.kv_per_token == by_hand


def test_one_copy_of_the_weights_by_hand() -> None:
    weights = base_of(ASK).weights
    experts = 62 * 256 * 3 * 1536 * 3072
    assert weights.experts == experts + experts // 128**2 * 4
    linears = 62 * (2 * 6144 + 2 * 1024) * 3072
    assert weights.attention == linears + linears // 128**2 * 4
    assert weights.embedding == weights.head == 200064 * 3072 * 2


def test_all_rows_and_gpus_of_the_guide_are_there() -> None:
    titles = {one.row.title for one in FOUND}
    assert {"4 × 96 GB", "8 × 144 GB", "2 × 192 GB", "4 × 192 GB", "2 × 288 GB", "4 × 288 GB"} <= titles
    layouts = {one.ours.mapping for one in FOUND if one.row.gpus in (4, 8)}
    assert {Mapping(4), Mapping(4, 4), Mapping(8, 8), Mapping(1, 8, 8), Mapping(8)} == layouts
    assert all(one.ours.gpu.vendor == "AMD" for one in FOUND if one.row.size in (192, 288))
    for card in ("h20", "a800", "h200", "mi325x", "mi350x", "a100"):
        assert find_gpu(card)


def test_the_guide_s_way_of_counting_gives_its_figures_on_nvidia() -> None:
    """GB of the name, nine tenths of them, less the weights: a little above what it states, for steps take the rest."""
    for one in FOUND:
        if one.row.size in (96, 144):
            assert 1 < one.counted / one.row.tokens < 1.15
            assert one.ours.kv_capacity_tokens > one.counted
            assert "to steps and context" in one.remark or one.refused


def test_the_arithmetic_adds_up_to_ours() -> None:
    for one in FOUND:
        assert sum(term.tokens for term in one.terms) == pytest.approx(one.ours.kv_capacity_tokens)
        assert abs(one.terms[-1].tokens) < 64 * 8 * 3  # pages alone: every cause has a term of its own


def test_what_no_gpu_can_hold_is_said() -> None:
    row = next(one for one in FOUND if one.row.title == "4 × 288 GB")
    assert row.needed > 4 * row.ours.gpu.memory
    assert "only an FP8 cache holds so many" in row.remark
    assert row.ours.kv_capacity_tokens < row.row.tokens < row.fp8


def test_pure_tp8_is_planned_where_the_guide_refuses_it() -> None:
    refused = [one for one in FOUND if one.refused]
    assert [one.ours.mapping for one in refused] == [Mapping(8)]
    assert refused[0].ours.fits
    assert refused[0].ours.kv_capacity_tokens > 3_000_000


def test_other_models_are_compared_too() -> None:
    small = ModelConfig(
        layers=2, hidden=128, heads=8, kv_heads=4, head_dim=128, intermediate=512, experts=8, top_k=2,
        vocab=1024, eps=1e-6, context=512, rope=Rope(1e4, 64), bos=None, eos=(),
    )  # fmt: skip
    found = compare(Ask(small, WeightFormats(), 512))
    assert found
    for one in found:
        assert sum(term.tokens for term in one.terms) == pytest.approx(one.ours.kv_capacity_tokens)
    assert compare(Ask(M27, FP8, 4096, kv_dtype="fp8"))[0].ours.kv_capacity_tokens > 10**6


def test_no_figure_of_the_guide_enters_a_plan() -> None:
    """Only what prints and compares reads the guide."""
    readers = set()
    for path in (ROOT / "compiler").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                if "mm2c.plan.guide" in names:
                    readers.add(path.name)
    assert readers == {"compare.py", "report.py", "plan_guide.py"}
