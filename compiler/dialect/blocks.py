"""FP8 block scales: one f32 for each block_n × block_k block over the last two axes of a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm2c.dialect.body import FLOAT, Body

if TYPE_CHECKING:
    from torch import Tensor


def dequantize(body: Body, weight: str, scale: str, block_n: str, block_k: str, parts: int = 1) -> str:
    """weight[N, K] e4m3 · scale[parts · ⌈N/parts/block_n⌉, ⌈K/block_k⌉] → f32[N, K].

    ``block_n`` and ``block_k`` are i64[1]. Rows come in ``parts`` equal parts, each divided into blocks of
    its own.
    """
    rows, columns = body.dims(scale, 0, 1), body.dims(scale, 1, 2)
    spread = body.Expand(
        body.Unsqueeze(scale, body.ints(1, 3)),
        body.join(rows, block_n, columns, block_k),
    )
    grid = body.Reshape(spread, body.join(body.ints(parts, -1), body.Mul(columns, block_k)))
    # the last block of an axis may be cut short
    ends = body.join(body.Div(body.dims(weight, 0, 1), body.ints(parts)), body.dims(weight, 1, 2))
    fitted = body.Slice(grid, body.ints(0, 0), ends, body.ints(1, 2))
    return str(body.Mul(body.Cast(weight, to=FLOAT), body.Reshape(fitted, body.Shape(weight))))


def dequantize_reference(weight: Tensor, scale: Tensor, block_n: int, block_k: int, parts: int = 1) -> Tensor:
    """The same for weight[…, N, K] and scale[…, parts · ⌈N/parts/block_n⌉, ⌈K/block_k⌉] in torch."""
    n, k = weight.shape[-2:]
    grid = scale.float().repeat_interleave(block_n, -2).repeat_interleave(block_k, -1)
    fitted = grid.unflatten(-2, (parts, -1))[..., : n // parts, :k].flatten(-3, -2)
    return weight.float() * fitted
