"""Tensors for interpreted plugins, and how their results are compared."""

from __future__ import annotations

import math

import torch

BF16, F32, I32, E4M3 = torch.bfloat16, torch.float32, torch.int32, torch.float8_e4m3fn


class Random:
    """``random(*shape, scale=1, dtype=bf16)``: the next normal numbers of a fixed sequence."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(7)

    def __call__(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = BF16) -> torch.Tensor:
        return (torch.randn(shape, generator=self._generator) * scale).to(dtype)


def quantized(
    random: Random, *shape: int, parts: int = 1, sides: tuple[int, int] = (128, 128)
) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 weights [.., N, K] and the scales of their blocks of ``sides``, such that values are about 1/√K."""
    *lead, n, k = shape
    weight = random(*shape, scale=64, dtype=E4M3)
    blocks = (*lead, parts * math.ceil(n / parts / sides[0]), math.ceil(k / sides[1]))
    return weight, random(*blocks, dtype=F32).abs().clamp(0.3, 3) / (64 * math.sqrt(k))


def masked_logits(random: Random, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of 300 tokens, the allowed ones as bits of i32 words, and the logits with -inf elsewhere."""
    logits = random(rows, 300, scale=3, dtype=F32)
    allowed = torch.rand(rows, 320, generator=torch.Generator().manual_seed(5)) < 0.5
    words = (allowed.reshape(rows, 10, 32).long() << torch.arange(32)).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words).to(I32)
    return logits, words, logits.masked_fill(~allowed[:, :300], -math.inf)


def close(given: torch.Tensor, wanted: torch.Tensor, tolerance: float = 8e-3) -> None:
    """The largest difference is below ``tolerance`` of the largest value, and everything is finite."""
    assert given.shape == wanted.shape
    given, wanted = given.float(), wanted.float()
    assert bool(given.isfinite().all())
    difference = float((given - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-9)
    assert difference < tolerance, difference
