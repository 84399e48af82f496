"""Sizes and GPUs by the names that people give them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm2c.errors import UserError
from mm2c.plan.gpus import GPUS, KERNELS, USUAL, find_gpu, gpu_of_size, with_memory
from mm2c.plan.room import GRAPH_BYTES, MARGIN, decode_buckets
from mm2c.plan.sizes import gb, gib, parse_size, tokens

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "size"),
    [("96GiB", 96 << 30), ("96GB", 96 * 10**9), ("80G", 80 * 10**9), ("80g", 80 * 10**9), ("1.5 TiB", 3 << 39),
     ("97887MiB", 97887 << 20), ("0.5Gi", 1 << 29), (" 24 gib ", 24 << 30)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["96", "GiB", "", "-3GiB", "96 parsecs", "0GiB", "1e3G", "nan", "12KB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UserError, match="is no memory size") as refused:
        parse_size(text)
    assert "96GiB" in refused.value.remedy


@given(st.integers(1, 2**44), st.sampled_from(["MiB", "MB", "GiB", "GB", "G", "gib"]))
def test_sizes_are_whole_units(count: int, unit: str) -> None:
    scale = {"mib": 2**20, "mb": 10**6, "gib": 2**30, "gb": 10**9, "g": 10**9}[unit.lower()]
    if count * scale >= 2**20:
        assert parse_size(f"{count}{unit}") == count * scale


def test_sizes_in_words() -> None:
    assert (gib(3 << 29), gb(1.25e9)) == ("1.5 GiB", "1.2 GB")
    assert [tokens(n) for n in (950, 400_000, 3_480_000)] == ["950", "400 K", "3.48 M"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("h200", "h200"), ("H100-80GB", "h100"), ("NVIDIA H100", "h100"), ("RTX PRO 6000", "rtx-pro-6000"),
     ("rtx_6000_ada", "rtx-6000-ada"), ("A100 40GB", "a100-40"), ("AMD Instinct MI300X", "mi300x"),
     ("GeForce RTX 5090", "rtx-5090"), ("h20-3e", "h20-141"), ("B200", "b200")],
)  # fmt: skip
def test_gpus_by_name(text: str, name: str) -> None:
    assert find_gpu(text).name == name


def test_an_unknown_gpu_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean h200") as refused:
        find_gpu("h2000")
    assert "--memory" in refused.value.remedy
    assert all(gpu.name in refused.value.remedy for gpu in GPUS)
    with pytest.raises(UserError) as refused:
        find_gpu("abacus")
    assert "did you mean" not in refused.value.what


def test_the_table_is_sound() -> None:
    names = [gpu.name for gpu in GPUS]
    assert len(set(names)) == len(names)
    assert set(USUAL) < set(names)
    for gpu in GPUS:
        assert find_gpu(gpu.name) is find_gpu(gpu.title) is gpu
        assert 0.94 < gpu.memory / (gpu.nominal * 1e9) < 1.09, gpu.name  # between GB and GiB of the name
        assert gpu.bandwidth > gpu.link > 0
        assert bool(gpu.engine_note) == (gpu.sm not in KERNELS)
    assert find_gpu("mi300x").vendor == "AMD"
    assert "AMD" in find_gpu("mi300x").engine_note
    assert "10.3" in find_gpu("b300").engine_note


def test_a_size_alone_has_assumed_speeds() -> None:
    gpu = gpu_of_size(96 << 30, "96GiB")
    assert (gpu.memory, gpu.known, gpu.engine_note) == (96 << 30, False, "")
    assert with_memory(find_gpu("h200"), 100 << 30).bandwidth == find_gpu("h200").bandwidth


def test_the_reserve_is_the_cuda_engine_s() -> None:
    """Its module needs torch: the constants are read off its text."""
    text = (ROOT / "model_repo/runtime/executors/cuda/memory.py").read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(text).body:
        name = getattr(node.targets[0], "id", "") if isinstance(node, ast.Assign) else ""
        if isinstance(node, ast.Assign) and name in ("GRAPH_BYTES", "MARGIN"):
            found[name] = eval(compile(ast.Expression(node.value), "memory", "eval"), {})
    assert found == {"GRAPH_BYTES": GRAPH_BYTES, "MARGIN": MARGIN}


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 12, 13, 33, 100, 256])
def test_captured_steps_are_the_cuda_engine_s(rows: int) -> None:
    scope: dict[str, object] = {}
    text = (ROOT / "model_repo/runtime/executors/cuda/buckets.py").read_text(encoding="utf-8")
    exec(compile(text, "buckets", "exec"), scope)
    assert scope["buckets"](rows) == decode_buckets(rows)  # type: ignore[operator]
