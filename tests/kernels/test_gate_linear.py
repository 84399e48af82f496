"""gate_linear against f64 products, in the interpreter."""

from __future__ import annotations

import math

import pytest
import torch

from mm2c_plugins.kernels.gate_linear import gate_linear

FORMS = {
    "gemv": {"BM": 1, "BE": 16, "BK": 64, "GEMV": 1},
    "slices": {"BM": 16, "BE": 16, "BK": 64, "SLICES": 4},
    "tensor": {"BM": 32, "BE": 32, "BK": 64},
}


def run(x: torch.Tensor, w: torch.Tensor, **shape: int) -> torch.Tensor:
    constants = {"SLICES": 1, "GEMV": 0, **shape}
    (t, c), e = x.shape, w.shape[0]
    logits = torch.full((t, e), math.nan)
    grid = (math.ceil(e / constants["BE"]), math.ceil(t / constants["BM"]))
    gate_linear[grid](x, w, logits, t, c, e, **constants, F32=w.dtype == torch.float32, PDL=False)
    return logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("t", "c", "e"), [(1, 64, 8), (3, 192, 20), (17, 400, 36)])
@pytest.mark.parametrize("form", FORMS)
def test_exact_products_and_f32_sums(form: str, t: int, c: int, e: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(t, c, generator=generator).bfloat16()
    w = (torch.randn(e, c, generator=generator) * 0.05).to(dtype)
    logits = run(x, w, **FORMS[form])
    exact = x.double() @ w.double().T
    size = x.double().abs() @ w.double().abs().T
    assert ((logits.double() - exact).abs() <= size * c * 2**-25).all()


@pytest.mark.parametrize("form", FORMS)
def test_f32_weights_lose_no_bit(form: str) -> None:
    """One column alone: the logit is the f32 weight itself, which no bf16 or TF32 product would give."""
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    x[0, 13] = 1.0
    assert torch.equal(run(x, w, **FORMS[form])[0], w[:, 13])
