"""Prints, as JSON, which of the known faults triton's own interpreter does not have: {fault: is it right}."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
import triton
import triton.language as tl

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


@triton.jit
def copy_cast(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i).to(y.dtype.element_ty))


@triton.jit
def square(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i[:, None] * N + i[None, :])
    tl.store(y + i[:, None] * N + i[None, :], tl.dot(v, v))


@triton.jit
def add(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i) + tl.load(x + i))


@triton.jit
def masked(x, y, n, N: tl.constexpr):
    i = tl.arange(0, N)
    mask = (i < N) & (tl.program_id(0) < n)
    tl.store(y + i, tl.load(x + i, mask=mask), mask=mask)


@triton.jit
def arg_max(x, y, N: tl.constexpr):
    tl.store(y, tl.argmax(tl.load(x + tl.arange(0, N)), 0))


def cast(source: torch.Tensor, target: torch.dtype) -> torch.Tensor:
    result = torch.zeros(source.shape, dtype=target)
    copy_cast[(1,)](source, result, N=source.numel())
    return result


def cast_is_right(value: float, source: torch.dtype, target: torch.dtype) -> bool:
    given = torch.full((16,), value, dtype=source)
    return torch.equal(cast(given, target).float(), given.to(target).float())


def dot_is_right(kind: torch.dtype, value: float) -> bool:
    x, y = torch.full((16, 16), value).to(kind), torch.zeros(16, 16)
    square[(1,)](x, y, N=16)
    return torch.allclose(y, x.double().pow(2).mul(16).float(), rtol=1e-7)


def add_is_right() -> bool:
    x, y = torch.full((16,), 1.5, dtype=BF16), torch.zeros(16, dtype=BF16)
    add[(1,)](x, y, N=16)
    return torch.equal(y, x + x)


def mask_is_right() -> bool:
    x, y = torch.ones(16), torch.zeros(16)
    masked[(1,)](x, y, 1, N=16)
    return torch.equal(x, y)


def nan_arg_max_is_right() -> bool:
    arg_max[(1,)](torch.full((16,), float("nan")), torch.zeros(1, dtype=torch.int32), N=16)
    return True


def right(check: Callable[..., bool], *arguments: object) -> bool:
    try:
        return check(*arguments)
    except triton.runtime.errors.InterpreterError:
        return False


print(
    json.dumps(
        {
            "bfloat16 rounding": right(cast_is_right, 1 + 2.0**-8 + 2.0**-20, torch.float32, BF16),
            "float8 rounding carry": right(cast_is_right, 1.99, torch.float32, E4M3),
            "int to bfloat16": right(cast_is_right, 3, torch.int32, BF16),
            "bfloat16 dot": right(dot_is_right, BF16, 1.5),
            "float32 dot in tf32": not right(dot_is_right, torch.float32, 1 + 2.0**-20),
            "bfloat16 addition": right(add_is_right),
            "scalar in a mask": right(mask_is_right),
            "argmax of nan": right(nan_arg_max_is_right),
        }
    )
)
