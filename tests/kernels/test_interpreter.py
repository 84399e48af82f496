"""The corrected interpreter against torch, and the faults of the uncorrected one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from mm2c_plugins.kernels import interpreter

BF16, E4M3, E5M2 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
BIG = 2**31 - 1


@triton.jit
def copy_cast(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i).to(y.dtype.element_ty))


@triton.jit
def product(a, b, y, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    left = tl.load(a + m * K + k[None, :])
    right = tl.load(b + k[:, None] * N + n)
    if EXACT:
        total = tl.dot(left, right, input_precision="ieee")
    else:
        total = tl.dot(left, right)
    tl.store(y + m * N + n, total)


@triton.jit
def arithmetic(a, b, y, less, N: tl.constexpr):
    i = tl.arange(0, N)
    x, z = tl.load(a + i), tl.load(b + i)
    tl.store(y + i, (x * z + x) - z)
    tl.store(y + N + i, tl.maximum(x, -z))
    tl.store(y + 2 * N + i, tl.where(x < z, x, z))
    tl.store(less + i, (x < z).to(tl.int32))


@triton.jit
def masked_copy(x, y, n, limit, N: tl.constexpr):
    i = tl.arange(0, N)
    mask = (i < n) & (tl.program_id(0).to(tl.int64) < limit.to(tl.int64))
    tl.store(y + i, tl.load(x + i, mask=mask, other=-1.0), mask=mask)


@triton.jit
def arg_max(x, y, N: tl.constexpr):
    tl.store(y, tl.argmax(tl.load(x + tl.arange(0, N)), 0))


@triton.jit
def sorted_rows(x, y, R: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, R)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(y + at, tl.sort(tl.load(x + at), descending=True))


@triton.jit
def _later(value, index, other_value, other_index):
    keep = value >= other_value
    return tl.where(keep, value, other_value), tl.where(keep, index, other_index)


@triton.jit
def running_best(x, best, where, R: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, R)[:, None] * N + tl.arange(0, N)[None, :]
    index = tl.broadcast_to(tl.arange(0, N)[None, :], (R, N))
    values, indices = tl.associative_scan((tl.load(x + at), index), 1, _later)
    tl.store(best + at, values)
    tl.store(where + at, indices)
    value, _ = tl.reduce((tl.load(x + at), index), 1, _later)
    tl.store(best + R * N + tl.arange(0, R), value)


@triton.jit
def bf16_sums(x, y, N: tl.constexpr):
    value = tl.load(x + tl.arange(0, N))
    tl.store(y, tl.sum(value, 0))
    tl.store(y + 1, tl.max(value, 0))
    tl.store(y + 2 + tl.arange(0, N), tl.cumsum(value, 0))


def cast(source: torch.Tensor, target: torch.dtype) -> torch.Tensor:
    result = torch.zeros(source.shape, dtype=target)
    copy_cast[(1,)](source, result, N=source.numel())
    return result


def every(bits: int, kind: torch.dtype) -> torch.Tensor:
    whole = {8: torch.uint8, 16: torch.int16}[bits]
    return torch.arange(2**bits, dtype=torch.int32).to(whole).view(kind)


def awkward() -> torch.Tensor:
    """float32: all bfloat16 values, ties between neighbours, what lies just beside the ties, and the ends."""
    bits = torch.arange(2**16, dtype=torch.int64) << 16
    near = torch.cat([bits + low for low in (0, 0x7FFF, 0x8000, 0x8001)])
    return near.to(torch.int32).view(torch.float32)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    left, right = left.float(), right.float()
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


def test_float32_to_bfloat16_rounds_to_nearest_even() -> None:
    assert same(cast(awkward(), BF16), awkward().to(BF16))


@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_float32_to_float8_rounds_and_saturates(kind: torch.dtype) -> None:
    values, largest = awkward(), torch.finfo(kind).max
    assert same(cast(values, kind), values.clamp(-largest, largest).to(kind))


def test_bfloat16_and_float8_to_float32_are_exact() -> None:
    for source in (every(16, BF16), every(8, E4M3), every(8, E5M2)):
        assert same(cast(source, torch.float32), source.float())
    assert same(cast(every(8, E4M3), BF16), every(8, E4M3).to(BF16))
    assert same(cast(every(8, E4M3), torch.float16), every(8, E4M3).to(torch.float16))


def test_float64_to_bfloat16_rounds_once() -> None:
    tie = 1 + 2.0**-8  # between two bfloat16; float32 cannot hold the little that decides
    values = torch.tensor([tie, tie + 2.0**-40, tie - 2.0**-40, -tie - 2.0**-40], dtype=torch.float64)
    assert cast(values, BF16).tolist() == [1.0, 1 + 2.0**-7, 1.0, -1 - 2.0**-7]


def test_integers_and_bfloat16() -> None:
    whole = torch.tensor([0, 1, -3, 257, 65535, -(2**31), BIG, 12345], dtype=torch.int32)
    assert same(cast(whole, BF16), whole.to(BF16))
    values = torch.tensor([0.0, -1.5, 2.75, 300.0], dtype=BF16)
    assert cast(values, torch.int32).tolist() == [0, -1, 2, 300]


def test_float_to_integer_saturates() -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e9, -3e9, 1e20, -7.9, 7.9])
    assert cast(values, torch.int32).tolist() == [0, BIG, -BIG - 1, BIG, -BIG - 1, BIG, -7, 7]
    assert cast(values, torch.int64).tolist()[:3] == [0, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("kind", [BF16, E4M3, E5M2, torch.float16])
def test_dot_multiplies_values(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(16, 64).to(kind), torch.randn(64, 32).to(kind)
    result = torch.zeros(16, 32)
    product[(1,)](a, b, result, M=16, N=32, K=64, EXACT=False)
    torch.testing.assert_close(result, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_float32_dot_is_tf32_unless_asked() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(16, 64), torch.randn(64, 16)
    rough, exact = torch.zeros(16, 16), torch.zeros(16, 16)
    product[(1,)](a, b, rough, M=16, N=16, K=64, EXACT=False)
    product[(1,)](a, b, exact, M=16, N=16, K=64, EXACT=True)
    torch.testing.assert_close(exact, a @ b, rtol=1e-5, atol=1e-5)
    assert 1e-4 < float((rough - a @ b).abs().max()) < 5e-2


def test_elementwise_bfloat16_rounds_after_every_operation() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(256).to(BF16), torch.randn(256).to(BF16)
    result, less = torch.zeros(3, 256, dtype=BF16), torch.zeros(256, dtype=torch.int32)
    arithmetic[(1,)](a, b, result, less, N=256)
    assert same(result[0], (a * b + a) - b)
    assert same(result[1], torch.maximum(a, -b))
    assert same(result[2], torch.minimum(a, b))
    assert torch.equal(less, (a < b).int())


def test_masks_may_hold_scalar_comparisons() -> None:
    x, y = torch.arange(16.0), torch.zeros(16)
    masked_copy[(1,)](x, y, 7, 1, N=16)
    assert torch.equal(y, torch.where(x < 7, x, 0))
    masked_copy[(1,)](x, y, 16, 0, N=16)  # scalar comparison false: nothing is written
    assert torch.equal(y, torch.where(x < 7, x, 0))


def test_arg_max_takes_the_first_and_lives_with_nan() -> None:
    result = torch.zeros(1, dtype=torch.int32)
    arg_max[(1,)](torch.tensor([1.0, 5.0, 2.0, 5.0]), result, N=4)
    assert result.item() == 1
    arg_max[(1,)](torch.full((4,), float("nan")), result, N=4)
    assert 0 <= result.item() < 4


def test_sort_scan_and_reduce_with_a_combine_function() -> None:
    torch.manual_seed(0)
    x = torch.randint(-1000, 1000, (4, 256), dtype=torch.int64)
    ordered = torch.zeros_like(x)
    sorted_rows[(1,)](x, ordered, R=4, N=256)
    assert torch.equal(ordered, x.sort(dim=1, descending=True).values)

    best, where = torch.zeros(4 * 256 + 4, dtype=torch.int64), torch.zeros(4, 256, dtype=torch.int32)
    running_best[(1,)](x, best, where, R=4, N=256)
    wanted = x.cummax(dim=1)
    assert torch.equal(best[:-4].view(4, 256), wanted.values)
    assert torch.equal(x.gather(1, where.long()), wanted.values)
    assert torch.equal(best[-4:], x.max(dim=1).values)


def test_reductions_of_bfloat16() -> None:
    x = torch.tensor([1.5, -2.0, 4.0, 0.25], dtype=BF16)
    result = torch.zeros(6)
    bf16_sums[(1,)](x, result, N=4)
    assert result[:2].tolist() == [3.75, 4.0]
    assert result[2:].tolist() == [1.5, -0.5, 3.5, 3.75]


def test_encode_against_torch_for_random_bits() -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    ours = interpreter.decode(interpreter.encode(values, tl.bfloat16), tl.bfloat16)
    assert same(torch.from_numpy(ours), torch.from_numpy(values).to(BF16))


def test_the_uncorrected_interpreter_still_has_the_faults() -> None:
    """One of these turning right means that triton mended it: drop the correction."""
    code = Path(__file__).with_name("uncorrected.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, str(code)], env=environment, capture_output=True, text=True, check=True
    )
    right = json.loads(run.stdout.splitlines()[-1])
    assert right == dict.fromkeys(right, False)
    assert len(right) == 8
