"""Narrowed recipes give the same bytes as slicing the whole tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm2c.passes.narrow import join, narrow, repeat
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import (
    Cast,
    Concat,
    Dequantize,
    Pad,
    Quantize,
    QuantizeScale,
    Recipe,
    Repeat,
    Slice,
    Source,
    Stack,
)


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
    Repeat(source(4), 0, 3),
    Repeat(Stack((source(4), source(5))), 2, 2),
    repeat(Stack((Concat((source(4), source(5)), 0), Concat((source(6), source(7)), 0))), 1, 2),
    Quantize(source(0), 3, 4),
    QuantizeScale(Stack((source(0), source(1))), 3, 4),
    Dequantize(Quantize(source(2), 2, 4), QuantizeScale(source(2), 2, 4), 2, 4),
    Dequantize(
        Stack((Quantize(source(2), 3, 2), Quantize(source(3), 3, 2))),
        Stack((QuantizeScale(source(2), 3, 2), QuantizeScale(source(3), 3, 2))),
        3,
        2,
    ),
]


@given(st.sampled_from(RECIPES), st.data())
def test_equals_the_slice(recipe: Recipe, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(recipe.shape) - 1))
    start = data.draw(st.integers(0, recipe.shape[axis] - 1))
    stop = data.draw(st.integers(start + 1, recipe.shape[axis]))
    part = narrow(recipe, axis, start, stop)
    expected = np.take(evaluate(recipe, READER), range(start, stop), axis)
    assert part.shape == expected.shape
    np.testing.assert_array_equal(evaluate(part, READER).astype(np.float32), expected.astype(np.float32))
    assert np.array_equal(evaluate(narrow(part, axis, 0, 1), READER), np.take(expected, [0], axis))


def test_an_expert_stack_keeps_only_its_experts() -> None:
    stack = RECIPES[3]
    part = narrow(narrow(stack, 0, 1, 3), 1, 0, 4)
    assert part == Stack((source(2), source(4)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("recipe", RECIPES[:6])
def test_repeated_inside_or_around_is_the_same(recipe: Recipe, axis: int, times: int) -> None:
    found = repeat(repeat(recipe, axis, times), axis, 2)
    np.testing.assert_array_equal(
        evaluate(found, READER), np.repeat(evaluate(recipe, READER), 2 * times, axis)
    )
    if isinstance(recipe, Stack) and axis > 0:
        assert isinstance(found, Stack)


def test_of_a_repeated_tensor_only_what_the_range_touches_is_read() -> None:
    assert narrow(Repeat(source(0), 0, 3), 0, 3, 9) == Repeat(Slice(source(0), 0, 1, 3), 0, 3)
    assert narrow(Repeat(source(0), 0, 3), 0, 4, 5) == Slice(Repeat(Slice(source(0), 0, 1, 2), 0, 3), 0, 1, 2)
    assert narrow(Repeat(source(0), 0, 3), 1, 2, 4) == Repeat(Slice(source(0), 1, 2, 4), 0, 3)


def test_of_a_quantised_tensor_only_the_blocks_that_the_range_touches_are_read() -> None:
    assert narrow(Quantize(source(0), 2, 4), 0, 2, 4) == Quantize(Slice(source(0), 0, 2, 4), 2, 4)
    assert narrow(Quantize(source(0), 2, 4), 1, 4, 6) == Quantize(Slice(source(0), 1, 4, 6), 2, 4)
    assert narrow(QuantizeScale(source(0), 2, 4), 0, 1, 2) == QuantizeScale(Slice(source(0), 0, 2, 4), 2, 4)
    cut = narrow(Quantize(source(0), 2, 4), 0, 1, 2)
    assert cut == Slice(Quantize(Slice(source(0), 0, 0, 2), 2, 4), 0, 1, 2)


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
