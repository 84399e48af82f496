"""FP8 block scales: one f32 for each block_n × block_k block over the last two axes of a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm2c.dialect.body import FLOAT, Body

if TYPE_CHECKING:
    from torch import Tensor


def dequantize(body: Body, weight: str, scale: str, block_n: str, block_k: str) -> str:
    """weight[N, K] e4m3 · scale[⌈N/block_n⌉, ⌈K/block_k⌉] → f32[N, K]; ``block_n``, ``block_k`` are i64[1]."""
    rows, columns = body.dims(scale, 0, 1), body.dims(scale, 1, 2)
    spread = body.Expand(
        body.Unsqueeze(scale, body.ints(1, 3)),
        body.join(rows, block_n, columns, block_k),
    )
    grid = body.Reshape(spread, body.join(body.Mul(rows, block_n), body.Mul(columns, block_k)))
    # the last block of an axis may be cut short
    fitted = body.Slice(grid, body.ints(0, 0), body.Shape(weight), body.ints(0, 1))
    return str(body.Mul(body.Cast(weight, to=FLOAT), fitted))


def dequantize_reference(weight: Tensor, scale: Tensor, block_n: int, block_k: int) -> Tensor:
    """weight[…, N, K] e4m3 · scale[…, ⌈N/block_n⌉, ⌈K/block_k⌉] → f32[…, N, K]."""
    n, k = weight.shape[-2:]
    grid = scale.float().repeat_interleave(block_n, -2).repeat_interleave(block_k, -1)
    return weight.float() * grid[..., :n, :k]
