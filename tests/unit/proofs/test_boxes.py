"""Boxes of random recipes, put in place number by number, are what evaluating the recipe gives."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm2c.proofs import ProofError
from mm2c.proofs.boxes import FILL, decompose
from mm2c.proofs.pieces import Axis
from mm2c.proofs.tiles import fault
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import (
    Cast,
    Concat,
    Dequantize,
    Interleave,
    Pad,
    QuantizeScale,
    Recipe,
    Repeat,
    Slice,
    Source,
    Stack,
    Transpose,
)

Array = np.ndarray[Any, Any]


class Numbered:
    """Tensors whose entries are all different: the key's number and the place."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}

    def source(self, *shape: int) -> Source:
        key = f"t{len(self.tensors)}"
        first = 1000 * len(self.tensors) + 1
        self.tensors[key] = np.arange(first, first + prod(shape), dtype=np.float32).reshape(shape)
        return Source(key, "f32", shape)

    def read_rows(self, key: str, start: int, stop: int) -> Array:
        return self.tensors[key][start:stop]


def placed(recipe: Recipe, numbered: Numbered) -> Array:
    """The recipe's result, from its boxes alone; every place is written once."""
    boxes = decompose(recipe)
    out = np.full(boxes.shape, np.nan, np.float32)
    for run in boxes.runs:
        for piece in run.pieces:
            for row in range(len(run.keys)):
                axes = list(piece.axes)
                if run.lead >= 0:
                    axes[run.lead] = Axis(-1, 0, 1, run.start + row)
                key = run.key(piece, row)
                for entry in product(*(range(axis.size) for axis in axes)):
                    source = [0] * len(piece.shape)
                    for axis, at in zip(axes, entry, strict=True):
                        if axis.source >= 0:
                            source[axis.source] = axis.first + at
                    value = (
                        float(key[len(FILL) :])
                        if key.startswith(FILL)
                        else numbered.tensors[key][tuple(source)]
                    )
                    places = [
                        [axis.start + axis.step * at + nth for nth in range(axis.repeat)]
                        for axis, at in zip(axes, entry, strict=True)
                    ]
                    for place in product(*places):
                        assert np.isnan(out[place])
                        out[place] = value
    assert not np.isnan(out).any()
    return out


@st.composite
def recipes(draw: st.DrawFn) -> tuple[Recipe, Numbered]:
    numbered = Numbered()

    def grown(depth: int, shape: tuple[int, ...] | None) -> Recipe:
        if depth == 0 or draw(st.integers(0, 5)) == 0:
            return numbered.source(*(shape or draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))))
        if shape is not None:  # a part that must have this shape
            axis = draw(st.integers(0, len(shape) - 1))
            before, behind = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            larger = (*shape[:axis], before + shape[axis] + behind, *shape[axis + 1 :])
            return Slice(numbered.source(*larger), axis, before, before + shape[axis])
        of = grown(depth - 1, None)
        axis = draw(st.integers(0, len(of.shape) - 1))
        size = of.shape[axis]
        kind = draw(
            st.sampled_from(["slice", "concat", "stack", "turn", "interleave", "pad", "repeat", "twin"])
        )
        if kind == "slice":
            start = draw(st.integers(0, size - 1))
            return Slice(of, axis, start, draw(st.integers(start + 1, size)))
        if kind == "concat":
            return Concat((of, grown(1, of.shape)), axis)
        if kind == "stack" and len(of.shape) < 4:
            return Stack((of, *(grown(1, of.shape) for _ in range(draw(st.integers(0, 2))))))
        if kind == "twin" and len(of.shape) < 4:  # parts of one form
            row = of.shape
            return Stack(
                tuple(Concat((numbered.source(*row), numbered.source(*row)), axis) for _ in range(3))
            )
        if kind == "turn":
            return Transpose(of, tuple(draw(st.permutations(range(len(of.shape))))))
        if kind == "interleave" and size % 2 == 0:
            return Interleave(of, axis)
        if kind == "pad":
            return Pad(of, axis, size + draw(st.integers(0, 2)), 0.5)
        return Repeat(of, axis, draw(st.integers(1, 3)))

    return grown(draw(st.integers(0, 5)), None), numbered


@settings(max_examples=300, deadline=None)
@given(recipes())
def test_boxes_are_what_is_evaluated(made: tuple[Recipe, Numbered]) -> None:
    recipe, numbered = made
    if prod(recipe.shape) > 3000:
        return
    np.testing.assert_array_equal(placed(recipe, numbered), evaluate(recipe, numbered))


def test_experts_of_one_form_are_one_run() -> None:
    parts = tuple(
        Concat((Slice(Source(f"w1.{n}", "bf16", (8, 4)), 0, 2, 4), Source(f"w3.{n}", "bf16", (2, 4))), 0)
        for n in range(6)
    )
    gate, up = decompose(Slice(Stack(parts), 0, 1, 6)).runs
    for run, half in ((gate, "w1"), (up, "w3")):
        assert (run.lead, run.start, len(run.pieces)) == (0, 0, 1)
        assert [run.key(run.pieces[0], row) for row in range(5)] == [f"{half}.{n}" for n in range(1, 6)]
    other = Concat((Source("w1.6", "bf16", (2, 4)), Source("w3.6", "bf16", (2, 4))), 0)
    assert len(decompose(Stack((*parts, other))).runs) == 4


def test_conversions_are_told() -> None:
    weight, scale = Source("w", "e4m3", (256, 128)), Source("w_scale_inv", "f32", (2, 1))
    boxes = decompose(Cast(Dequantize(weight, scale, 128, 128), "bf16"))
    assert boxes.runs[0].pieces[0].how == ("dequantize", "cast bf16")
    assert [run.keys for run in boxes.scales] == [[("w_scale_inv",)]]
    quantised = decompose(Slice(QuantizeScale(Source("w", "bf16", (300, 128)), 128, 128), 0, 1, 3))
    (piece,) = quantised.runs[0].pieces
    assert (piece.suffix, piece.shape, piece.source_box()) == ("_scale_inv", (3, 1), ((1, 3), (0, 1)))


@pytest.mark.parametrize(
    "recipe",
    [
        Dequantize(Source("w", "e4m3", (256, 128)), Source("x_scale_inv", "f32", (2, 1)), 128, 128),
        Dequantize(Source("w", "e4m3", (256, 128)), Source("w_scale_inv", "f32", (2, 1)), 64, 128),
        Dequantize(
            Slice(Source("w", "e4m3", (256, 128)), 0, 64, 192), Source("w_scale_inv", "f32", (2, 1)), 128, 128
        ),
        QuantizeScale(Slice(Source("w", "bf16", (256, 128)), 0, 64, 192), 128, 128),
        QuantizeScale(Concat((Source("v", "bf16", (64, 128)), Source("w", "bf16", (256, 128))), 0), 128, 128),
    ],
)
def test_scales_of_other_blocks(recipe: Recipe) -> None:
    with pytest.raises(ProofError, match=r"^[vw]"):
        decompose(recipe)


def test_tiles() -> None:
    whole = ((0, 4), (0, 6))
    assert fault([((0, 4), (0, 2)), ((0, 1), (2, 6)), ((1, 4), (2, 6))], whole) is None
    assert fault([((0, 4), (0, 2)), ((0, 4), (3, 6))], whole) == "[0, 4) x [2, 3) is missing"
    assert fault([((0, 3), (0, 6)), ((2, 4), (0, 6))], whole) == "[2, 3) x [0, 6) is there twice"
    assert fault([((0, 5), (0, 6))], whole) == "[0, 5) x [0, 6) is not within [0, 4) x [0, 6)"
