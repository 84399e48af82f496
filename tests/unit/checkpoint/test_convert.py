"""Converted recipes: what becomes FP8 or bf16, in which shape of tree, and what stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm2c.checkpoint import Checkpoint, converted, converted_formats
from mm2c.checkpoint.convert import quantised_modules
from mm2c.checkpoint.quantization import quantization_report, summary_line
from mm2c.config import WeightTarget
from mm2c.passes.narrow import narrow
from mm2c.progress import Quiet
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import (
    Cast,
    Concat,
    Dequantize,
    Quantize,
    QuantizeScale,
    Recipe,
    Source,
    Stack,
)

SHAPE = dict(
    layers=2, hidden=200, heads=2, kv_heads=2, head_dim=48, rotary_dim=24, intermediate=136, experts=3
)
ATTENTION = [f"model.layers.{layer}.self_attn.{p}_proj" for layer in (0, 1) for p in "qkvo"]
EXPERTS = [f"model.layers.{layer}.mlp.experts" for layer in (0, 1)]


@pytest.fixture(scope="module")
def opened(random_checkpoint: Callable[..., Path]) -> Iterator[Callable[[str], Checkpoint]]:
    made: dict[str, Checkpoint] = {}

    def open_one(quant: str) -> Checkpoint:
        if quant not in made:
            made[quant] = Checkpoint.open(random_checkpoint(**SHAPE, quant=quant, seed=71))
        return made[quant]

    yield open_one
    for checkpoint in made.values():
        checkpoint.close()


def after(checkpoint: Checkpoint, target: WeightTarget) -> dict[str, Recipe]:
    return converted(checkpoint.recipes(), checkpoint.formats, target, checkpoint.config)[0]


@pytest.mark.parametrize("quant", ["fp8", "bf16", "mixed"])
def test_formats_say_what_the_recipes_are(opened: Callable[[str], Checkpoint], quant: str) -> None:
    checkpoint = opened(quant)
    for target in ("stored", "fp8", "bf16"):
        recipes, formats = converted(checkpoint.recipes(), checkpoint.formats, target, checkpoint.config)
        assert formats == converted_formats(checkpoint.config, checkpoint.formats, target)
        for module in (*ATTENTION, *EXPERTS):
            for name in (f"{module}.weight", f"{module}.gate_up_proj", f"{module}.down_proj"):
                if name not in recipes:
                    continue
                fp8 = formats.of(module) == "fp8"
                assert recipes[name].dtype == ("e4m3" if fp8 else formats.dtype(name))
                assert (f"{name}_scale_inv" in recipes) == fp8
        if target == "stored":
            assert recipes == checkpoint.recipes()
            assert formats == checkpoint.formats
        else:
            assert formats.fp8 == (frozenset((*ATTENTION, *EXPERTS)) if target == "fp8" else frozenset())


def test_shapes_are_those_of_a_stored_fp8_checkpoint(opened: Callable[[str], Checkpoint]) -> None:
    """Gate and up are blocked apart, as released: 136 rows each are 2 blocks each, not 3 together."""
    released, quantised = opened("fp8").recipes(), after(opened("bf16"), "fp8")
    assert {n: (r.dtype, r.shape) for n, r in quantised.items()} == {
        n: (r.dtype, r.shape) for n, r in released.items()
    }
    dense, dequantised = opened("bf16").recipes(), after(opened("fp8"), "bf16")
    assert {n: (r.dtype, r.shape) for n, r in dequantised.items()} == {
        n: (r.dtype, r.shape) for n, r in dense.items()
    }


def test_stacks_of_experts_stay_outermost(opened: Callable[[str], Checkpoint]) -> None:
    for quant, target, leaf in (("bf16", "fp8", Quantize), ("fp8", "bf16", Cast)):
        recipes = after(opened(quant), target)  # type: ignore[arg-type]
        gate_up = recipes[f"{EXPERTS[0]}.gate_up_proj"]
        assert isinstance(gate_up, Stack)
        for expert in gate_up.parts:
            assert isinstance(expert, Concat)
            assert expert.axis == 0
            assert all(isinstance(part, leaf) for part in expert.parts)
        down = recipes[f"{EXPERTS[0]}.down_proj"]
        assert isinstance(down, Stack)
        assert all(isinstance(part, leaf) for part in down.parts)


def test_a_mixed_checkpoint_quantises_what_is_dense(opened: Callable[[str], Checkpoint]) -> None:
    checkpoint = opened("mixed")
    assert list(quantised_modules(checkpoint.config, checkpoint.formats, "fp8")) == ATTENTION
    assert quantised_modules(checkpoint.config, checkpoint.formats, "bf16") == ()
    recipes = after(checkpoint, "fp8")
    for module in EXPERTS:
        assert recipes[f"{module}.down_proj"] == checkpoint.recipes()[f"{module}.down_proj"]
    for module in ATTENTION:
        source = Source(f"{module}.weight", "bf16", recipes[f"{module}.weight"].shape)
        assert recipes[f"{module}.weight"] == Quantize(source, 128, 128)
        assert recipes[f"{module}.weight_scale_inv"] == QuantizeScale(source, 128, 128)


@given(data=st.data(), target=st.sampled_from(["fp8", "bf16"]))
def test_slices_are_slices_of_the_whole(
    opened: Callable[[str], Checkpoint], data: st.DataObject, target: WeightTarget
) -> None:
    """A rank's part of a converted tensor: a block that the cut divides keeps the scale of all of it."""
    checkpoint = opened("bf16" if target == "fp8" else "fp8")
    recipes = after(checkpoint, target)
    name = data.draw(
        st.sampled_from([f"{EXPERTS[1]}.gate_up_proj", f"{EXPERTS[0]}.down_proj", f"{ATTENTION[3]}.weight"])
    )
    recipe = recipes[name]
    axis = data.draw(st.integers(0, len(recipe.shape) - 1))
    start = data.draw(st.integers(0, recipe.shape[axis] - 1))
    stop = data.draw(st.integers(start + 1, recipe.shape[axis]))
    part = evaluate(narrow(recipe, axis, start, stop), checkpoint)
    cut = evaluate(recipe, checkpoint)[(*(slice(None),) * axis, slice(start, stop))]
    assert np.ascontiguousarray(part).tobytes() == np.ascontiguousarray(cut).tobytes()


def test_the_report_is_the_error_computed_by_hand(opened: Callable[[str], Checkpoint]) -> None:
    checkpoint = opened("bf16")
    report = quantization_report(checkpoint, (*ATTENTION, *EXPERTS), Quiet())

    def by_hand(names: list[str]) -> tuple[float, float]:
        errors, all_weights, largest = [], [], 0.0
        for name in names:
            weight = checkpoint.read(name).astype(np.float32)
            source = Source(name, "bf16", weight.shape)
            dense = Dequantize(Quantize(source, 128, 128), QuantizeScale(source, 128, 128), 128, 128)
            error = (evaluate(dense, checkpoint) - weight).astype(np.float64)
            errors.append((error**2).sum())
            all_weights.append((weight.astype(np.float64) ** 2).sum())
            largest = max(largest, float(np.abs(error).max() / np.abs(weight).max()))
        return math.sqrt(sum(errors) / sum(all_weights)), largest

    experts = "model.layers.1.block_sparse_moe.experts"
    for kind, names in {
        "q_proj": ["model.layers.1.self_attn.q_proj.weight"],
        "gate": [f"{experts}.{e}.w1.weight" for e in range(3)],
        "down": [f"{experts}.{e}.w2.weight" for e in range(3)],
    }.items():
        found = report["layers"][1][kind]
        rms, largest = by_hand(names)
        assert found["relative_rms"] == pytest.approx(rms, rel=1e-6)
        assert found["largest_error"] == pytest.approx(largest, rel=1e-6)
        assert found["tensors"] == len(names)
        assert found["worst"] in names
    line = summary_line(report)
    assert f"{report['total']['tensors']} tensors" in line
    assert report["total"]["worst"] in line


def test_the_report_of_weights_without_error(opened: Callable[[str], Checkpoint], monkeypatch: Any) -> None:
    """Zeros are exact: no division by nothing, no SQNR."""
    checkpoint = opened("bf16")
    read = checkpoint.read_rows
    monkeypatch.setattr(checkpoint, "read_rows", lambda *rows: read(*rows) * 0)
    report = quantization_report(checkpoint, ATTENTION[:1], Quiet())
    total = report["total"]
    assert (total["relative_rms"], total["sqnr_db"], total["largest_error"]) == (0.0, None, 0.0)
    assert "exact" in summary_line(report)


@pytest.mark.parametrize("band", [1, 128 * 200, 4 << 20])
def test_bands_do_not_change_the_report(
    opened: Callable[[str], Checkpoint], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm2c.checkpoint import quantization

    checkpoint = opened("bf16")
    whole = quantization_report(checkpoint, EXPERTS, Quiet())["total"]
    monkeypatch.setattr(quantization, "_BAND", band)
    found = quantization_report(checkpoint, EXPERTS, Quiet())["total"]
    assert found["relative_rms"] == pytest.approx(whole["relative_rms"], rel=1e-9)
    assert found["largest_error"] == whole["largest_error"]
