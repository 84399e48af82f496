"""Random edits of the recipe of any tensor of any rank: none that moves an entry is proved."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proof_cases import Files, case

from mm2c.config import Mapping
from mm2c.proofs import ProofError
from mm2c_runtime.weights.recipe import Concat, Recipe, Repeat, Slice, Transpose

TP4, TP8, EP, DP = Mapping(4), Mapping(8), Mapping(4, 2), Mapping(2, 4, 2)
NAMES = sorted(name for name in case(TP8).ranks[0] if not name.startswith("rope"))


@settings(max_examples=60, deadline=None)
@given(
    mapping=st.sampled_from([TP4, TP8, EP, DP]),
    name=st.sampled_from(NAMES),
    rank=st.integers(0, 3),
    kind=st.sampled_from(["roll", "cut", "double", "turn", "repeat"]),
    axis=st.integers(0, 2),
    at=st.integers(1, 10_000),
)
def test_random_damage(mapping: Mapping, name: str, rank: int, kind: str, axis: int, at: int) -> None:
    """No edit of a recipe that moves an entry is proved."""
    made = case(mapping)
    recipe = made.ranks[rank][name]
    axis %= len(recipe.shape)
    size = recipe.shape[axis]
    place = at % size
    damaged: Recipe
    if kind in ("roll", "cut", "double") and (size < 2 or place == 0):
        return
    if kind == "roll":
        damaged = Concat((Slice(recipe, axis, place, size), Slice(recipe, axis, 0, place)), axis)
    elif kind == "cut":
        damaged = Slice(recipe, axis, 0, place)
    elif kind == "double":
        damaged = Concat((Slice(recipe, axis, 0, place), Slice(recipe, axis, place - 1, size - 1)), axis)
    elif kind == "turn":
        if len(recipe.shape) < 2 or recipe.shape[-1] == 1 or recipe.shape[-2] == 1:
            return
        order = tuple(range(len(recipe.shape)))
        damaged = Transpose(recipe, (*order[:-2], order[-1], order[-2]))
    else:
        damaged = Repeat(recipe, axis, 2)
    ranks: Files = [dict(recipes) for recipes in made.ranks]
    ranks[rank][name] = damaged
    with pytest.raises(ProofError) as caught:
        made.prove(ranks)
    assert name.removesuffix("_scale_inv") in str(caught.value)
