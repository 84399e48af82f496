"""M2RouterLinear: the router's logits, in f32 whatever the activations are."""

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

PLUGIN = "M2RouterLinear"

SCHEMA = define(
    "M2RouterLinear",
    "logits[..., E] = x[..., H] · w[E, H]ᵀ with products and sums in f32: two experts' scores may differ by less "
    "than a bf16 step.",
    inputs=[("x", "T"), ("w", "W")],
    outputs=[("logits", F32)],
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    weight = b.Transpose(b.Cast("w", to=FLOAT), perm=[1, 0])
    return b.function(b.MatMul(b.Cast("x", to=FLOAT), weight))


def reference(x: Tensor, w: Tensor) -> Tensor:
    return x.float() @ w.float().T


def fake(x: Tensor, w: Tensor) -> Tensor:
    import torch

    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=torch.float32)


@cache
def register_torch() -> TorchOp:
    return register(SCHEMA, "router_linear", "(Tensor x, Tensor w) -> Tensor", reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
