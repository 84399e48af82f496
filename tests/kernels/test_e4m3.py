"""e4m3 by bit arithmetic, against torch's float8_e4m3fn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from mm2c_plugins.kernels.e4m3 import decode, decode_f16, encode


@triton.jit
def decode_all(codes, out, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(out + o, decode(tl.load(codes + o)))


@triton.jit
def decode_all_f16(codes, out, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(out + o, decode_f16(tl.load(codes + o)))


@triton.jit
def encode_all(values, out, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + o, encode(tl.load(values + o)))


def encoded(values: torch.Tensor) -> torch.Tensor:
    block = 4096
    padded = torch.nn.functional.pad(values, (0, -len(values) % block))
    out = torch.zeros(len(padded), dtype=torch.uint8)
    encode_all[(len(padded) // block,)](padded, out, BLOCK=block)
    return out[: len(values)]


@pytest.mark.parametrize(
    ("kernel", "target"),
    [
        (decode_all, torch.bfloat16),
        (decode_all_f16, torch.float16),
    ],
)
def test_every_code_becomes_its_exact_value(kernel: Any, target: torch.dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    out = torch.zeros(256, dtype=target)
    kernel[(1,)](codes, out, BLOCK=256)
    want = codes.view(torch.float8_e4m3fn).float()
    nan = want.isnan()
    assert nan.sum() == 2
    assert torch.equal(out.float()[~nan].view(torch.int32), want[~nan].view(torch.int32))  # -0 included
    assert out[nan].isnan().all()


def test_encode_returns_every_code_to_itself():
    codes = torch.arange(256, dtype=torch.uint8)
    finite = codes[~codes.view(torch.float8_e4m3fn).float().isnan()]
    assert torch.equal(encoded(finite.view(torch.float8_e4m3fn).float()), finite)


def test_encode_rounds_ties_to_even_and_its_neighbours_to_the_nearest():
    grid = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()  # 0 .. 448
    middle = (grid[1:] + grid[:-1]) / 2  # exact in f32
    around = [middle, torch.nextafter(middle, torch.tensor(0.0)), torch.nextafter(middle, torch.tensor(1e9))]
    even = torch.arange(126, dtype=torch.uint8) + (torch.arange(126) % 2)
    want = torch.cat([even, torch.arange(126), torch.arange(1, 127)]).to(torch.uint8)
    values = torch.cat(around)
    assert torch.equal(encoded(values), want)
    assert torch.equal(encoded(-values), want | 0x80)


def test_encode_saturates_and_keeps_the_sign_of_zero():
    special = [
        448.0,
        449.0,
        464.0,
        480.0,
        1e30,
        np.inf,
        0.0,
        1e-45,
        2.0**-10,
        -448.0,
        -1e9,
        -np.inf,
        -0.0,
        -1e-45,
    ]
    codes = encoded(torch.tensor(special, dtype=torch.float32)).tolist()
    assert codes == [0x7E] * 6 + [0, 0, 0, 0xFE, 0xFE, 0xFE, 0x80, 0x80]
    bits = [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF]
    nans = torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32))
    assert encoded(nans).tolist() == [0x7F] * 4


def test_encode_agrees_with_torch_over_all_magnitudes():
    bits = torch.randint(0, 2**32, (1 << 17,), generator=torch.Generator().manual_seed(1))
    exponents = bits & 0x807FFFFF | ((bits >> 8) % 24 + 110) << 23  # ±2^-17 .. ±2^7
    values = torch.from_numpy(exponents.numpy().astype(np.uint32).view(np.float32))
    assert torch.equal(encoded(values), values.to(torch.float8_e4m3fn).view(torch.uint8))
