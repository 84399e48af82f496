"""M2QkSumSquares: what the norm over the whole width of q and of k needs from each rank."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import FunctionProto

from mm2c.dialect.body import FLOAT, Body
from mm2c.dialect.schema import F32, define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = "M2QkSumSquares"

SCHEMA = define(
    "M2QkSumSquares",
    "s[B, S, 0] = Σ q², s[B, S, 1] = Σ k² over the last axis, in f32; summed over ranks by an all-reduce.",
    inputs=[("q", "T"), ("k", "T")],
    outputs=[("s", F32)],
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    sums = [b.ReduceSumSquare(b.Cast(x, to=FLOAT), b.ints(-1), keepdims=1) for x in ("q", "k")]
    return b.function(b.Concat(*sums, axis=-1))


def reference(q: Tensor, k: Tensor) -> Tensor:
    import torch

    return torch.stack([q.float().square().sum(-1), k.float().square().sum(-1)], -1)


def fake(q: Tensor, k: Tensor) -> Tensor:
    import torch

    return q.new_empty((*q.shape[:-1], 2), dtype=torch.float32)


@cache
def register_torch() -> TorchOp:
    return register(SCHEMA, "qk_sum_squares", "(Tensor q, Tensor k) -> Tensor", reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
