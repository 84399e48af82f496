"""fp8_linear and split_sum against the dialect's M2Fp8Linear, in the interpreter."""

from __future__ import annotations

import math

import pytest
import torch

from mm2c.dialect.blocks import dequantize_reference
from mm2c.dialect.fp8_linear import reference
from mm2c_plugins.kernels.fp8_linear import fp8_linear
from mm2c_plugins.kernels.split_sum import split_sum

FORMS = {
    "tensor": {"BM": 16, "BN": 32},
    "slices": {"BM": 16, "BN": 16, "SLICES": 4},
    "swapped": {"BM": 64, "BN": 128, "SWAP": 1},
    "wide": {"BM": 32, "BN": 128},
    "gemv1": {"BM": 1, "BN": 32, "GEMV": 4},
    "gemv2": {"BM": 2, "BN": 32, "GEMV": 1},
    "gemv4": {"BM": 4, "BN": 64, "GEMV": 2},
}


def weights(n: int, k: int, block: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of every kind but NaN, and scales of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 254, (n, k), generator=generator, dtype=torch.uint8)
    codes += (codes >= 127).to(torch.uint8)  # leave out 0x7f; 0xff is past the end
    scale = torch.rand(math.ceil(n / block[0]), math.ceil(k / block[1]), generator=generator) * 0.02 + 1e-3
    return codes.view(torch.float8_e4m3fn), scale


def run(
    x: torch.Tensor,
    w: torch.Tensor,
    scale: torch.Tensor,
    block: tuple[int, int],
    u8: bool = False,
    **shape: int,
) -> torch.Tensor:
    constants = {"BK": 64, "SPLIT": 1, "SLICES": 1, "GEMV": 0, "SWAP": 0, **shape}
    (t, k), n = x.shape, w.shape[0]
    splits = constants["SPLIT"]
    y = torch.full((t, n), 7.0, dtype=torch.bfloat16)
    part = torch.full((splits, t, n), math.nan)
    grid = (math.ceil(n / constants["BN"]), math.ceil(t / constants["BM"]), splits)
    stored = w.view(torch.uint8) if u8 else w
    fp8_linear[grid](x, stored, scale, y, part, t, n, k, *block, **constants, U8=u8, PDL=False)
    if splits > 1:
        assert (y == 7.0).all()
        split_sum[(math.ceil(t * n / 256),)](part, y, t * n, splits, BLOCK=256, PDL=False)
    return y


def check(
    y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]
) -> None:
    """Against exact products, then against the dialect's reference, which rounds dequantised weights to bf16."""
    wide = dequantize_reference(w, scale, *block).double()
    exact = x.double() @ wide.T
    size = x.double().abs() @ wide.abs().T
    # half a last place of the bf16 result, and sums in f32
    assert ((y.double() - exact).abs() <= exact.abs() * 2**-8 + size * 2e-6).all()
    dialect = reference(x.float(), w, scale, *block)
    torch.testing.assert_close(y.float(), dialect, rtol=2**-7, atol=float(size.max()) * 1e-5)


@pytest.mark.parametrize("u8", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_dialect(form: str, u8: bool) -> None:
    t = {"gemv1": 2, "gemv2": 3, "gemv4": 5}.get(form, 17)
    block = (128, 128)
    x = torch.randn(t, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    w, scale = weights(144, 256, block)
    y = run(x, w, scale, block, u8, **{"BK": 128, **FORMS[form]})
    check(y, x, w, scale, block)


@pytest.mark.parametrize("block", [(64, 64), (64, 128), (128, 64)])
@pytest.mark.parametrize("form", FORMS)
def test_scale_blocks_and_ragged_sizes(form: str, block: tuple[int, int]) -> None:
    """K of three 64s, so that slices and vectors have a tail; N that no tile divides."""
    x = torch.randn(3, 192, generator=torch.Generator().manual_seed(2)).bfloat16()
    w, scale = weights(208, 192, block, seed=3)
    check(run(x, w, scale, block, **FORMS[form]), x, w, scale, block)


@pytest.mark.parametrize("t", [1, 16, 33])
def test_token_counts(t: int) -> None:
    x = torch.randn(t, 128, generator=torch.Generator().manual_seed(t)).bfloat16()
    w, scale = weights(32, 128, (128, 128))
    check(run(x, w, scale, (128, 128), BM=16, BN=16, SLICES=2), x, w, scale, (128, 128))


@pytest.mark.parametrize(
    ("form", "splits"), [("tensor", 3), ("slices", 2), ("swapped", 2), ("gemv2", 2), ("tensor", 7)]
)
def test_split_columns(form: str, splits: int) -> None:
    """Shares of different lengths, one of them empty where there are more programs than steps."""
    x = torch.randn(5, 320, generator=torch.Generator().manual_seed(4)).bfloat16()
    w, scale = weights(48, 320, (64, 64))
    check(run(x, w, scale, (64, 64), SPLIT=splits, **FORMS[form]), x, w, scale, (64, 64))


@pytest.mark.parametrize("u8", [False, True])
@pytest.mark.parametrize("form", ["tensor", "slices", "swapped", "gemv1"])
def test_every_code_exactly(form: str, u8: bool) -> None:
    """A row of x that is one at one column gives that column of the weight, bit for bit: all finite codes, with
    subnormals, ±448 and the zeros."""
    codes = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F] + [0, 0], dtype=torch.uint8)
    w = codes.repeat(16, 1)
    for row in range(16):
        w[row] = w[row].roll(16 * row)
    w = w.view(torch.float8_e4m3fn).contiguous()
    scale = torch.tensor([[0.5, 2.0]])
    columns = torch.arange(0, 256, 16)
    x = torch.zeros(16, 256, dtype=torch.bfloat16)
    x[torch.arange(16), columns] = 1.0
    y = run(x, w, scale, (128, 128), u8, **{"BK": 128, **FORMS[form]})
    expected = dequantize_reference(w, scale, 128, 128)[:, columns].T
    assert torch.equal(y.float(), expected)


def test_forms_agree_with_u8_bit_for_bit() -> None:
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(6)).bfloat16()
    w, scale = weights(64, 256, (128, 128))
    for form in FORMS.values():
        arguments = {"BK": 128, **form}
        assert torch.equal(
            run(x, w, scale, (128, 128), **arguments), run(x, w, scale, (128, 128), True, **arguments)
        )
