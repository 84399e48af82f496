"""M2AddRmsNorm: the residual addition and the norm behind it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import FunctionProto
from onnx.defs import OpSchema

from mm2c.dialect.body import Body
from mm2c.dialect.schema import define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = "M2AddRmsNorm"

SCHEMA = define(
    "M2AddRmsNorm",
    "total[..., H] = x + residual, rounded to their type; y = weight[H] · (total · rsqrt(mean(total²) + eps)), the "
    "norm in f32 and rounded before the weight.",
    inputs=[("x", "T"), ("residual", "T"), ("weight", "T")],
    outputs=[("y", "T"), ("total", "T")],
    attributes=[("eps", OpSchema.AttrType.FLOAT)],
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    total = b.Add("x", "residual")
    return b.function(b.RMSNormalization(total, "weight", axis=-1, epsilon=b.ref("eps")), total)


def reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    import torch

    total = x + residual
    wide = total.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * inverse).to(x.dtype), total


def fake(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@cache
def register_torch() -> TorchOp:
    signature = "(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)"
    return register(SCHEMA, "add_rms_norm", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
