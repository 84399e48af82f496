"""Narrowed recipes give the same bytes as slicing the whole tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm2c.passes.narrow import join, narrow
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import Cast, Concat, Pad, Recipe, Slice, Source, Stack


class Counting:
    """Every source holds its flat indices, offset by its key."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        shape = self.shapes[key]
        whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1000 * int(key)
        return whole[start:stop]


SHAPES = {str(i): (4, 6) for i in range(8)}
READER = Counting(SHAPES)


def source(i: int) -> Recipe:
    return Source(str(i), "f32", SHAPES[str(i)])


RECIPES: list[Recipe] = [
    source(0),
    Slice(source(0), 1, 1, 5),
    Cast(source(1), "f32"),
    Stack(tuple(Concat((source(2 * i), source(2 * i + 1)), 0) for i in range(4))),
    Concat((source(0), Slice(source(1), 1, 2, 4), source(2)), 1),
    Pad(source(3), 0, 7, -1.0),
]


@given(st.sampled_from(RECIPES), st.data())
def test_equals_the_slice(recipe: Recipe, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(recipe.shape) - 1))
    start = data.draw(st.integers(0, recipe.shape[axis] - 1))
    stop = data.draw(st.integers(start + 1, recipe.shape[axis]))
    part = narrow(recipe, axis, start, stop)
    expected = np.take(evaluate(recipe, READER), range(start, stop), axis)
    assert part.shape == expected.shape
    np.testing.assert_array_equal(evaluate(part, READER), expected)
    assert np.array_equal(evaluate(narrow(part, axis, 0, 1), READER), np.take(expected, [0], axis))


def test_an_expert_stack_keeps_only_its_experts() -> None:
    stack = RECIPES[3]
    part = narrow(narrow(stack, 0, 1, 3), 1, 0, 4)
    assert part == Stack((source(2), source(4)))


def test_joined_stacks_stay_a_stack() -> None:
    stack = Stack((source(0), source(1)))
    halves = narrow(stack, 1, 0, 2), narrow(stack, 1, 2, 4)
    joined = join(halves, 1)
    assert isinstance(joined, Stack)
    np.testing.assert_array_equal(evaluate(joined, READER), evaluate(stack, READER))


@pytest.mark.parametrize(("start", "stop"), [(2, 2), (-1, 2), (0, 5)])
def test_refuses_a_range_outside(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not inside axis 0"):
        narrow(source(0), 0, start, stop)
