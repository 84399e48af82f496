"""qk_sum_squares against the dialect's reference."""

from __future__ import annotations

import pytest
import torch

from mm2c.dialect import qk_sum_squares as dialect
from mm2c_plugins.kernels.qk_sum_squares import qk_sum_squares


@pytest.mark.parametrize(
    ("tokens", "q_width", "k_width", "block"),
    [(3, 1536, 256, 2048), (2, 6144, 1024, 2048), (1, 16, 16, 1024), (5, 1040, 272, 1024)],
)
def test_strided_rows(tokens: int, q_width: int, k_width: int, block: int):
    g = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(tokens, q_width + 2 * k_width + 32, generator=g).to(torch.bfloat16)
    q, k, rest = qkv.split([q_width, k_width, k_width + 32], -1)
    rest.fill_(float("nan"))
    s = torch.full((tokens, 2), float("nan"))
    qk_sum_squares[(tokens,)](
        q, k, s, q_width, k_width, q.stride(0), k.stride(0), BLOCK=block, KBLOCK=256, PDL=False
    )
    torch.testing.assert_close(s, dialect.reference(q, k), rtol=2e-6, atol=0)


def test_large_and_tiny_values_stay_in_f32():
    q = torch.full((1, 32), 3e15, dtype=torch.bfloat16)
    k = torch.full((1, 16), 2e-15, dtype=torch.bfloat16)
    s = torch.zeros(1, 2)
    qk_sum_squares[(1,)](q, k, s, 32, 16, 32, 16, BLOCK=1024, KBLOCK=256, PDL=False)
    torch.testing.assert_close(s, dialect.reference(q, k), rtol=1e-6, atol=0)
