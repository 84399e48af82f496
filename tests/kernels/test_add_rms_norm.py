"""add_rms_norm against transformers' RMSNorm after a bf16 addition, in the interpreter."""

from __future__ import annotations

import math

import pytest
import torch

from mm2c_plugins.kernels.add_rms_norm import add_rms_norm


def run(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    y, total = torch.full_like(x, math.nan), torch.full_like(x, math.nan)
    beside = x if residual is None else residual
    constants = {"BLOCK": block, "RESIDUAL": residual is not None, "PDL": False}
    add_rms_norm[(x.shape[0],)](x, beside, weight, y, total, x.shape[1], eps, **constants)
    return y, total


def reference(total: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = total.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(total.dtype)


def places_apart(a: torch.Tensor, b: torch.Tensor) -> int:
    """The greatest distance of two bf16 tensors in units of the last place."""
    codes = [t.view(torch.int16).int() for t in (a, b)]
    ordered = [torch.where(c < 0, -(c & 0x7FFF), c) for c in codes]
    return int((ordered[0] - ordered[1]).abs().max())


@pytest.mark.parametrize(("c", "block"), [(192, 1024), (1024, 1024), (3072, 4096), (6144, 8192)])
@pytest.mark.parametrize("with_residual", [True, False])
def test_equals_the_bf16_reference(c: int, block: int, with_residual: bool) -> None:
    generator = torch.Generator().manual_seed(c)
    x = (torch.randn(5, c, generator=generator) * 3).bfloat16()
    residual = torch.randn(5, c, generator=generator).bfloat16() if with_residual else None
    weight = (torch.rand(c, generator=generator) + 0.5).bfloat16()
    y, total = run(x, residual, weight, 1e-6, block)
    if residual is None:
        assert total.isnan().all()  # not written
        expected = x
    else:
        expected = x + residual
        assert torch.equal(total, expected)
    wanted = reference(expected, weight, 1e-6)
    assert places_apart(y, wanted) <= 1
    assert (y == wanted).float().mean() > 0.999


def test_eps_matters_for_rows_near_zero_and_zero_rows_stay_zero() -> None:
    x = torch.zeros(2, 192, dtype=torch.bfloat16)
    x[1] = 1e-3
    weight = torch.ones(192, dtype=torch.bfloat16)
    y, _ = run(x, torch.zeros_like(x), weight, 1e-5, 1024)
    assert (y[0] == 0).all()
    assert places_apart(y, reference(x, weight, 1e-5)) <= 1


def test_infinite_value_gives_nan_as_the_reference() -> None:
    x = torch.ones(1, 192, dtype=torch.bfloat16)
    x[0, 3] = math.inf
    weight = torch.ones(192, dtype=torch.bfloat16)
    y, _ = run(x, None, weight, 1e-6, 1024)
    assert torch.equal(y.isnan(), reference(x, weight, 1e-6).isnan())
