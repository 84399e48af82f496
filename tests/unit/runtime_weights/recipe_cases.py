"""Random recipes over random tensors, of the nodes that move elements and of those that compute them."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mm2c_runtime.weights import recipe as r
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.recipe import Recipe

Array = np.ndarray[Any, Any]


class Tensors:
    """A checkpoint in memory whose tensors follow from their sources; counts the elements that were read."""

    def __init__(self) -> None:
        self.sources: dict[str, r.Source] = {}
        self.read = 0

    def source(self, shape: tuple[int, ...], dtype: Any) -> r.Source:
        made = r.Source(f"t{len(self.sources)}", dtype, shape)
        self.sources[made.key] = made
        return made

    def whole(self, key: str) -> Array:
        source = self.sources[key]
        random = np.random.default_rng(zlib.crc32(key.encode()))
        return random.standard_normal(source.shape).astype(NUMPY[source.dtype])

    def read_rows(self, key: str, start: int, stop: int) -> Array:
        assert 0 <= start <= stop <= self.sources[key].shape[0]
        rows = self.whole(key)[start:stop]
        self.read += rows.size
        return rows

    def read_into(self, key: str, start: int, out: Array) -> None:
        assert out.flags.c_contiguous
        out[...] = self.read_rows(key, start, start + len(out))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensors, Recipe]:
    tensors = Tensors()
    rank = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 7)) for _ in range(rank))
    return tensors, draw(trees(tensors, shape, draw(st.sampled_from(["f32", "bf16"])), 4))


@st.composite
def trees(draw: st.DrawFn, tensors: Tensors, shape: tuple[int, ...], dtype: Any, depth: int) -> Recipe:
    """A recipe of this shape and dtype."""

    def inner(wanted: tuple[int, ...], kind: Any = dtype) -> Recipe:
        return draw(trees(tensors, wanted, kind, depth - 1))

    def along(axis: int, size: int) -> tuple[int, ...]:
        return (*shape[:axis], size, *shape[axis + 1 :])

    axis = draw(st.integers(0, len(shape) - 1))
    size = shape[axis]
    kinds = ["source", "slice", "cast", "concat", "transpose", "pad", "repeat"]
    kinds += ["stack"] if len(shape) > 1 else []
    kinds += ["interleave"] if size % 2 == 0 else []
    kinds += ["dequantize"] if len(shape) > 1 and dtype == "f32" else []
    kind = draw(st.sampled_from(kinds)) if depth else "source"
    if kind == "slice":
        before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        return r.Slice(inner(along(axis, before + size + after)), axis, before, before + size)
    if kind == "cast":
        return r.Cast(inner(shape, draw(st.sampled_from(["f32", "bf16", "f16"]))), dtype)
    if kind == "concat" and size > 1:
        cut = draw(st.integers(1, size - 1))
        return r.Concat((inner(along(axis, cut)), inner(along(axis, size - cut))), axis)
    if kind == "transpose":
        perm = tuple(draw(st.permutations(range(len(shape)))))
        before = [0] * len(shape)
        for out_axis, in_axis in enumerate(perm):
            before[in_axis] = shape[out_axis]
        return r.Transpose(inner(tuple(before)), perm)
    if kind == "pad" and size > 1:
        return r.Pad(inner(along(axis, draw(st.integers(1, size - 1)))), axis, size, 0.5)
    if kind == "repeat":
        times = draw(st.sampled_from([n for n in (1, 2, 3) if size % n == 0]))
        return r.Repeat(inner(along(axis, size // times)), axis, times)
    if kind == "stack":
        return r.Stack(tuple(inner(shape[1:]) for _ in range(shape[0])))
    if kind == "interleave":
        return r.Interleave(inner(shape), axis)
    if kind == "dequantize":
        n, k = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        grid = (*shape[:-2], -(-shape[-2] // n), -(-shape[-1] // k))
        return r.Dequantize(tensors.source(shape, "e4m3"), tensors.source(grid, "f32"), n, k)
    return tensors.source(shape, dtype)
