"""Evaluating recipes: each node against plain numpy, and every box against the box of the whole."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm2c_runtime.weights.dtypes import E4M3_VALUES, NUMPY
from mm2c_runtime.weights.evaluate import evaluate, nbytes, stream
from mm2c_runtime.weights.recipe import (
    Cast,
    Computed,
    Concat,
    Dequantize,
    Interleave,
    Pad,
    Recipe,
    Slice,
    Source,
    Stack,
    Transpose,
)
from mm2c_runtime.weights.recipe_json import from_json, to_json

Array = np.ndarray[Any, Any]


class Memory:
    """Tensors of any dtype, made from their key; counts the rows that were read."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.rows_read = 0

    def source(self, shape: tuple[int, ...], dtype: Any = "f32") -> Source:
        made = Source(f"t{len(self.sources)}", dtype, shape)
        self.sources[made.key] = made
        return made

    def whole(self, key: str) -> Array:
        source = self.sources[key]
        random = np.random.default_rng(int(key[1:]))
        if source.dtype == "e4m3":
            codes = random.integers(0, 0x7F, source.shape, dtype=np.uint8)
            return codes.view(NUMPY["e4m3"])
        return random.standard_normal(source.shape).astype(NUMPY[source.dtype])

    def read_rows(self, key: str, start: int, stop: int) -> Array:
        assert 0 <= start <= stop <= self.sources[key].shape[0]
        self.rows_read += stop - start
        return self.whole(key)[start:stop]


def numpy_value(recipe: Recipe, memory: Memory) -> Array:
    """What each node means, without push-down."""
    if isinstance(recipe, Source):
        return memory.whole(recipe.key)
    if isinstance(recipe, (Concat, Stack)):
        parts = [numpy_value(part, memory) for part in recipe.parts]
        return np.concatenate(parts, recipe.axis) if isinstance(recipe, Concat) else np.stack(parts)
    if isinstance(recipe, Dequantize):
        weight, scale = numpy_value(recipe.weight, memory), numpy_value(recipe.scale, memory)
        wide = np.repeat(np.repeat(scale, recipe.block_n, -2), recipe.block_k, -1)
        return weight.astype(np.float32) * wide[..., : weight.shape[-2], : weight.shape[-1]]
    assert not isinstance(recipe, Computed)
    value = numpy_value(recipe.of, memory)
    if isinstance(recipe, Slice):
        return np.take(value, range(recipe.start, recipe.stop), recipe.axis)
    if isinstance(recipe, Cast):
        return value.astype(np.float32).astype(NUMPY[recipe.to])
    if isinstance(recipe, Transpose):
        return value.transpose(recipe.perm)
    if isinstance(recipe, Interleave):
        half = value.shape[recipe.axis] // 2
        order = [i // 2 + (i % 2) * half for i in range(2 * half)]
        return np.take(value, order, recipe.axis)
    width = [(0, 0)] * value.ndim
    width[recipe.axis] = (0, recipe.to - value.shape[recipe.axis])
    return np.pad(value, width, constant_values=np.array(recipe.value, value.dtype))


@st.composite
def trees(draw: st.DrawFn, memory: Memory, shape: tuple[int, ...], depth: int = 3) -> Recipe:
    """A recipe of ``shape`` and f32, by drawing the node and then parts of the shapes it needs."""
    kinds = ["source"]
    axis = draw(st.integers(0, len(shape) - 1))
    if depth:
        kinds += ["slice", "cast", "concat"]
        kinds += ["stack"] if len(shape) == 3 else []
        kinds += ["dequantize"] if len(shape) >= 2 else []
        kinds += ["transpose"] if len(shape) >= 2 else []
        kinds += ["interleave"] if shape[axis] % 2 == 0 else []
        kinds += ["pad"] if shape[axis] > 1 else []

    def inner(size: int) -> Recipe:
        return draw(trees(memory, (*shape[:axis], size, *shape[axis + 1 :]), depth - 1))

    kind = draw(st.sampled_from(kinds))
    if kind == "slice":
        before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        return Slice(inner(before + shape[axis] + after), axis, before, before + shape[axis])
    if kind == "cast":
        return Cast(Cast(draw(trees(memory, shape, depth - 1)), "bf16"), "f32")
    if kind == "concat":
        cut = draw(st.integers(0, shape[axis]))
        sizes = [size for size in (cut, shape[axis] - cut) if size]
        return Concat(tuple(inner(size) for size in sizes), axis)
    if kind == "stack":
        return Stack(tuple(draw(trees(memory, shape[1:], depth - 1)) for _ in range(shape[0])))
    if kind == "dequantize":
        n, k = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        scales = (*shape[:-2], -(-shape[-2] // n), -(-shape[-1] // k))
        return Dequantize(memory.source(shape, "e4m3"), memory.source(scales), n, k)
    if kind == "transpose":
        perm = tuple(draw(st.permutations(range(len(shape)))))
        source = [0] * len(shape)
        for out, of in enumerate(perm):
            source[of] = shape[out]
        return Transpose(draw(trees(memory, tuple(source), depth - 1)), perm)
    if kind == "interleave":
        return Interleave(inner(shape[axis]), axis)
    if kind == "pad":
        return Pad(
            inner(draw(st.integers(1, shape[axis] - 1))),
            axis,
            shape[axis],
            draw(st.sampled_from([0.0, -np.inf])),
        )
    return memory.source(shape)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Memory, Recipe]:
    memory = Memory()
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    return memory, draw(trees(memory, shape))


@settings(max_examples=200, deadline=None)
@given(case=cases(), data=st.data())
def test_box_of_the_whole_is_the_evaluated_box(case: tuple[Memory, Recipe], data: st.DataObject) -> None:
    memory, recipe = case
    expected = numpy_value(recipe, memory)
    assert expected.shape == recipe.shape
    assert expected.dtype == NUMPY[recipe.dtype]
    found = evaluate(recipe, memory)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    boxed, sliced = recipe, expected
    for axis, size in enumerate(recipe.shape):
        start = data.draw(st.integers(0, size - 1))
        stop = data.draw(st.integers(start + 1, size))
        boxed = Slice(boxed, axis, start, stop)
        sliced = np.take(sliced, range(start, stop), axis)
    np.testing.assert_array_equal(evaluate(boxed, memory), sliced)


@settings(max_examples=100, deadline=None)
@given(case=cases(), limit=st.integers(1, 400))
def test_streamed_pieces_are_the_whole_in_order(case: tuple[Memory, Recipe], limit: int) -> None:
    memory, recipe = case
    pieces = list(stream(recipe, memory, limit))
    assert b"".join(piece.tobytes() for piece in pieces) == evaluate(recipe, memory).tobytes()
    assert all(piece.flags.c_contiguous for piece in pieces)
    assert sum(piece.nbytes for piece in pieces) == nbytes(recipe)


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_json_round_trip(case: tuple[Memory, Recipe]) -> None:
    import json

    assert from_json(json.loads(json.dumps(to_json(case[1])))) == case[1]


def test_json_of_a_computed_table() -> None:
    table = Computed("rope_cos", (8, 2), (("factor", 2.0), ("rope_type", "linear"), ("truncate", False)))
    assert from_json(to_json(table)) == table
    with pytest.raises(ValueError, match="no recipe"):
        from_json(["multiply", 1])


def test_a_slice_reads_only_its_rows() -> None:
    memory = Memory()
    parts = tuple(Concat((memory.source((64, 8)), memory.source((64, 8))), 0) for _ in range(4))
    stack = Stack(parts)
    evaluate(Slice(Slice(stack, 0, 1, 3), 1, 60, 70), memory)
    assert memory.rows_read == 2 * 10


def test_every_e4m3_code_widens_exactly() -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert E4M3_VALUES[codes].tobytes() == codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32).tobytes()
    assert np.isnan(E4M3_VALUES[[0x7F, 0xFF]]).all()
    assert np.isfinite(np.delete(E4M3_VALUES, [0x7F, 0xFF])).all()


def test_cast_to_bf16_rounds_to_nearest_even() -> None:
    memory = Memory()
    source = memory.source((4,))
    memory.whole = lambda key: np.array([1 + 2**-8, 1 + 3 * 2**-8, 1e-40, -np.pi], np.float32)  # type: ignore[method-assign]
    found = evaluate(Cast(source, "bf16"), memory).astype(np.float32)
    assert found[:2].tolist() == [1.0, 1.015625]
    assert found[3] == np.float32(-3.140625)
