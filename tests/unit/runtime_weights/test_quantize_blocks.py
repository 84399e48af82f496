"""Block quantisation: any region, odd sizes, zeros, denormals, saturation, and what is FP8 already."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_cases import Tensors

from mm2c_runtime.weights.dtypes import E4M3_VALUES, NUMPY
from mm2c_runtime.weights.evaluate import block_scales, evaluate
from mm2c_runtime.weights.recipe import Dequantize, Quantize, QuantizeScale, Source, Stack

Array = np.ndarray[Any, Any]
TINY = float(np.finfo(np.float32).tiny)


class Given(Tensors):
    """One tensor, ``w``."""

    def __init__(self, weight: Array) -> None:
        super().__init__()
        names = {dtype: name for name, dtype in NUMPY.items()}
        self.weight, self.of = weight, Source("w", names[weight.dtype], weight.shape)  # type: ignore[arg-type]
        self.sources["w"] = self.of

    def whole(self, key: str) -> Array:
        return self.weight


def quantised(weight: Array, n: int, k: int) -> tuple[Array, Array, Array]:
    """Codes, scales, and what they stand for."""
    given_ = Given(weight)
    codes, scales = Quantize(given_.of, n, k), QuantizeScale(given_.of, n, k)
    dense = Dequantize(codes, scales, n, k)
    return evaluate(codes, given_), evaluate(scales, given_), evaluate(dense, given_)


def by_hand(weight: Array, n: int, k: int) -> tuple[Array, Array]:
    """Block after block."""
    wide = weight.astype(np.float32)
    codes = np.empty(weight.shape, NUMPY["e4m3"])
    scales = np.empty((-(-weight.shape[0] // n), -(-weight.shape[1] // k)), np.float32)
    for i, j in np.ndindex(*scales.shape):
        block = wide[i * n : (i + 1) * n, j * k : (j + 1) * k]
        peak = np.abs(block).max()
        scales[i, j] = 1 if peak == 0 else max(peak / np.float32(448), np.float32(TINY))
        codes[i * n : (i + 1) * n, j * k : (j + 1) * k] = np.clip(block / scales[i, j], -448, 448)
    return codes, scales


weights = st.builds(
    lambda rows, columns, seed, spread, dtype: (
        np.random.default_rng(seed).standard_normal((rows, columns))
        * np.exp2(np.random.default_rng(seed + 1).integers(-spread, spread + 1, (rows, columns)))
    ).astype(NUMPY[dtype]),
    st.integers(1, 21),
    st.integers(1, 21),
    st.integers(0, 999),
    st.integers(0, 30),
    st.sampled_from(["f32", "bf16"]),
)
sides = st.integers(1, 9)


@given(weight=weights, n=sides, k=sides)
def test_codes_and_scales_are_those_of_each_block(weight: Array, n: int, k: int) -> None:
    codes, scales, _ = quantised(weight, n, k)
    wanted, wanted_scales = by_hand(weight, n, k)
    np.testing.assert_array_equal(scales, wanted_scales)
    np.testing.assert_array_equal(codes.view(np.uint8), wanted.view(np.uint8))


@given(weight=weights, n=sides, k=sides, data=st.data())
def test_a_region_is_the_region_of_the_whole(weight: Array, n: int, k: int, data: st.DataObject) -> None:
    """A block that a region cuts keeps the scale of all of it."""
    given_ = Given(weight)
    for recipe in (Quantize(given_.of, n, k), QuantizeScale(given_.of, n, k)):
        whole = evaluate(recipe, given_)
        box = []
        for size in recipe.shape:
            start = data.draw(st.integers(0, size - 1))
            box.append((start, data.draw(st.integers(start + 1, size))))
        part = evaluate(recipe, given_, tuple(box))
        cut = whole[tuple(slice(*bounds) for bounds in box)]
        assert part.tobytes() == np.ascontiguousarray(cut).tobytes()


@given(weight=weights, n=sides, k=sides)
def test_the_error_is_at_most_half_a_step(weight: Array, n: int, k: int) -> None:
    """Three bits of mantissa: 1/16 of a weight; below the smallest normal code, 2^-10 in parts of the scale."""
    _, scales, dense = quantised(weight, n, k)
    assert np.isfinite(dense).all()
    wide = weight.astype(np.float32)
    scale = np.repeat(np.repeat(scales, n, 0), k, 1)[: weight.shape[0], : weight.shape[1]]
    bound = np.maximum(np.abs(wide) / 16, scale * 2.0**-10) * (1 + 1e-6)
    assert (np.abs(dense - wide) <= bound).all()


@given(weight=weights, n=sides, k=sides)
def test_what_was_quantised_is_quantised_to_the_same_codes(weight: Array, n: int, k: int) -> None:
    """The largest code of a block is ±448, so that its maximum gives the same scale again, but for rounding."""
    codes, scales, dense = quantised(weight, n, k)
    again, scales_again, dense_again = quantised(dense, n, k)
    np.testing.assert_array_equal(again.view(np.uint8), codes.view(np.uint8))
    np.testing.assert_allclose(scales_again, scales, rtol=2**-22)
    np.testing.assert_allclose(dense_again, dense, rtol=2**-22)


@pytest.mark.parametrize("code", [0x7E, 0x7D, 0x70, 0x38])
def test_stored_blocks_below_the_largest_code_come_back_within_half_a_step(code: int) -> None:
    """They get another scale, and so other codes."""
    stored = np.array([[code, 0x01, 0x88, 0x00]], np.uint8).view(NUMPY["e4m3"])
    dense = stored.astype(np.float32) * np.float32(0.37)
    codes, scales, back = quantised(dense, 1, 4)
    assert E4M3_VALUES[codes.view(np.uint8)].max() == 448
    assert (np.abs(back - dense) <= np.maximum(np.abs(dense) / 16, scales[0, 0] * 2.0**-10)).all()


def test_zero_blocks_have_scale_one_and_zero_codes() -> None:
    weight = np.zeros((4, 6), np.float32)
    weight[0, 5] = 3.0
    codes, scales, dense = quantised(weight, 2, 3)
    np.testing.assert_array_equal(scales, np.array([[1, 3 / np.float32(448)], [1, 1]], np.float32))
    np.testing.assert_array_equal(dense, weight)
    assert not codes.view(np.uint8)[:, :3].any()


@pytest.mark.parametrize("peak", [1e-45, 1e-40, TINY, 3e-37])
def test_scales_of_tiny_weights_are_normal_numbers(peak: float) -> None:
    """A kernel that flushes denormals must not find a scale of zero, nor a division make infinities."""
    weight = np.array([[peak, -peak, peak / 2, 0]], np.float32)
    codes, scales, dense = quantised(weight, 1, 4)
    assert (scales >= TINY).all()
    assert np.isfinite(scales).all()
    assert np.isfinite(codes.astype(np.float32)).all()
    assert np.abs(dense - weight).max() <= max(peak / 16, TINY * 2.0**-10)


def test_large_weights_saturate_and_never_become_nan() -> None:
    """The quotient of a block's maximum may round to a little more than 448, where e4m3 has only NaN."""
    random = np.random.default_rng(0)
    peaks = np.exp(random.uniform(-80, 80, 20000)).astype(np.float32)
    peaks[:2] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    codes, scales, _ = quantised(peaks.reshape(-1, 1), 1, 1)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    np.testing.assert_array_equal(np.abs(codes.astype(np.float32)), 448)


def test_stacks_are_quantised_expert_by_expert() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((3, 5, 7)).astype(np.float32)
    scales = block_scales(weight, 2, 3)
    for expert in range(3):
        np.testing.assert_array_equal(scales[expert], block_scales(weight[expert], 2, 3))
    given_ = Given(weight)
    whole = evaluate(Quantize(given_.of, 2, 3), given_)
    parts = [Given(weight[expert]) for expert in range(3)]
    for expert, part in enumerate(parts):
        alone = evaluate(Stack((Quantize(part.of, 2, 3),)), part)
        np.testing.assert_array_equal(whole[expert].view(np.uint8), alone[0].view(np.uint8))
