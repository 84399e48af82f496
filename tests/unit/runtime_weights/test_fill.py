"""Filling memory with recipes: the same bytes as evaluating them, each checkpoint tensor read once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_cases import Tensors, cases

from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.fill import fill, split
from mm2c_runtime.weights.recipe import Cast, Dequantize, Recipe, Transpose


@given(case=cases(), limit=st.integers(1, 400))
def test_filled_memory_is_the_evaluated_recipe(case: tuple[Tensors, Recipe], limit: int) -> None:
    tensors, recipe = case
    target = np.full(recipe.shape, 99, NUMPY[recipe.dtype])
    fill(recipe, tensors, target, limit)
    assert target.tobytes() == np.ascontiguousarray(evaluate(recipe, tensors)).tobytes()


@given(case=cases(), limit=st.integers(1, 400), data=st.data())
def test_a_box_and_any_order_of_its_pieces(
    case: tuple[Tensors, Recipe], limit: int, data: st.DataObject
) -> None:
    tensors, recipe = case
    region = []
    for size in recipe.shape:
        start = data.draw(st.integers(0, size - 1))
        region.append((start, data.draw(st.integers(start + 1, size))))
    target = np.full([stop - start for start, stop in region], 99, NUMPY[recipe.dtype])
    pieces = list(split(recipe, target, limit, tuple(region)))
    for piece in data.draw(st.permutations(pieces)):
        piece.fill(tensors)
    assert target.tobytes() == np.ascontiguousarray(evaluate(recipe, tensors, tuple(region))).tobytes()


def test_pieces_do_not_overlap() -> None:
    tensors = Tensors()
    recipe = Transpose(tensors.source((30, 20), "f32"), (1, 0))
    target = np.zeros(recipe.shape, np.float32)
    for piece in split(recipe, target, limit=200):
        piece.target[...] += 1
    assert (target == 1).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_every_element_is_read_once(transposed: bool) -> None:
    """Also of a transposed tensor, of which a few rows would need the whole source."""
    tensors = Tensors()
    weight = tensors.source((64, 48), "e4m3")
    dense = Cast(Dequantize(weight, tensors.source((64, 48), "f32"), 1, 1), "bf16")
    recipe = Transpose(dense, (1, 0)) if transposed else dense
    target = np.empty(recipe.shape, NUMPY["bf16"])
    pieces = list(split(recipe, target, limit=600))
    assert len(pieces) > 5
    for piece in pieces:
        piece.fill(tensors)
    assert tensors.read == 2 * 64 * 48
