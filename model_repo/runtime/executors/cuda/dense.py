"""Linears of dense weights, by torch (cuBLAS on a GPU)."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_linear(x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """x[…, K] · w[N, K]ᵀ, accumulated in f32 and rounded once, to ``dtype`` (f32 or that of ``x``)."""
    flat = x.reshape(-1, x.shape[-1])
    if dtype == x.dtype == w.dtype:
        y = torch.mm(flat, w.t())
    elif x.is_cuda and dtype == torch.float32 and x.dtype == w.dtype:
        y = torch.mm(flat, w.t(), out_dtype=torch.float32)
    else:
        y = torch.mm(flat.float(), w.float().t()).to(dtype)
    return y.view(*x.shape[:-1], w.shape[0])
