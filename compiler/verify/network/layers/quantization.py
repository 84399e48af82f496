"""DEQUANTIZE: value · scale, in f32 and rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import FLOATS, Precision, torch_dtype
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.given import tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView


@evaluates("DEQUANTIZE", "IDequantizeLayer", "axis", "block_shape", "to_type")
def dequantize(view: LayerView) -> Evaluate:
    """One scale, one for each place of an axis, or one for each block. A zero point is refused."""
    view.only(0, 1)
    values, scale, target = view.input(0), view.input(1), str(view.layer.to_type.name)
    if values.dtype not in ("FP8", "INT8") or scale.dtype not in FLOATS or target not in FLOATS:
        view.refuse(f"{values.dtype} by {scale.dtype} to {target}")
    rank, axis = len(values.shape), int(view.layer.axis)
    blocks = _blocks(view)
    if len(scale.shape) == 1 and (blocks or not 0 <= axis < rank):
        view.refuse(f"a vector of scales of axis {axis}, blocks {blocks}")
    if len(scale.shape) not in (0, 1, rank) or len(blocks) not in (0, rank) or (blocks and not scale.shape):
        view.refuse(f"scales {list(scale.shape)} of {list(values.shape)} in blocks {blocks}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        x, s = tensor(given, 0), tensor(given, 1).float()
        if s.dim() == 1 and rank > 1:
            s = s.reshape([-1 if d == axis else 1 for d in range(rank)])
        if s.dim() == 0 or (s.numel() == 1 and not blocks):
            s = s.reshape([1] * rank)
            sides = list(x.shape)
        elif len(scale.shape) == 1 and rank > 1:
            sides = [1 if d == axis else n for d, n in enumerate(x.shape)]
        else:
            sides = blocks or [n // max(1, m) for n, m in zip(x.shape, s.shape, strict=True)]
        if [m * side for m, side in zip(s.shape, sides, strict=True)] != list(x.shape):
            raise ReplayError(
                f"layer {view.name}: scales {list(s.shape)} of {list(x.shape)} in blocks {sides}"
            )
        return (scaled(x, s, sides, torch_dtype(target, precision)),)

    return evaluate


def _blocks(view: LayerView) -> list[int]:
    """The sides of a block, empty where none are given: the binding raises an error then."""
    try:
        return [int(n) for n in view.layer.block_shape]
    except RuntimeError:
        return []


def scaled(x: Tensor, s: Tensor, sides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """x · the scale of its block; s has a scale for every ``sides`` elements of each axis. A part of the first axis at
    a time, so that little is held in f32 beside the result."""
    y = torch.empty(x.shape, dtype=dtype)
    step = sides[0]
    for first in range(s.shape[0]):
        part, scale = x[first * step : (first + 1) * step], s[first : first + 1]
        cut = part.float().reshape([n for m, side in zip(scale.shape, sides, strict=True) for n in (m, side)])
        grid = scale.reshape([n for m in scale.shape for n in (m, 1)])
        y[first * step : (first + 1) * step] = (cut * grid).reshape(part.shape).to(dtype)
    return y
