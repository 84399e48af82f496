"""MATRIX_MULTIPLY, summed in f32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import FLOATS, Precision
from mm2c.verify.network.layers.given import tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView

_PIECE = 1 << 25  # elements of an operand that are held in f32 at once


@evaluates("MATRIX_MULTIPLY", "IMatrixMultiplyLayer", "op0", "op1")
def matrix_multiply(view: LayerView) -> Evaluate:
    view.only(0, 1)
    first, second = view.input(0), view.input(1)
    if first.dtype != second.dtype or first.dtype not in FLOATS or view.outputs[0].dtype != first.dtype:
        view.refuse(f"{first.dtype} by {second.dtype} to {view.outputs[0].dtype}")
    ops = [view.one_of("operation", op, "NONE", "TRANSPOSE") for op in (view.layer.op0, view.layer.op1)]
    if len(first.shape) != len(second.shape) or len(first.shape) < 2:
        view.refuse(f"operands {list(first.shape)} and {list(second.shape)}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        a, b = (
            tensor(given, index).mT if op == "TRANSPOSE" else tensor(given, index)
            for index, op in enumerate(ops)
        )
        return (product(a, b),)

    return evaluate


def product(a: Tensor, b: Tensor) -> Tensor:
    """a · b over broadcast leading axes, in the type of ``a``; narrow operands become f32 piece by piece."""
    if a.dtype == torch.float32:
        return torch.matmul(a, b)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = a.new_empty([*batch, a.shape[-2], b.shape[-1]])
    left, right = a.expand([*batch, *a.shape[-2:]]), b.expand([*batch, *b.shape[-2:]])
    for place in (
        torch.cartesian_prod(*map(torch.arange, batch)).reshape(-1, len(batch)).tolist() if batch else [[]]
    ):
        at = tuple(place)
        _pieces(left[at], right[at], y[at])
    return y


def _pieces(a: Tensor, b: Tensor, y: Tensor) -> None:
    """y = a · b of two matrices."""
    if a.numel() > b.numel():
        return _pieces(b.mT, a.mT, y.mT)
    wide = a.float()
    columns = max(1, _PIECE // max(1, b.shape[0]))
    for start in range(0, b.shape[1], columns):
        piece = slice(start, start + columns)
        y[:, piece] = wide @ b[:, piece].float()
    return None
