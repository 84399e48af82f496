"""M2DenseLinear: a linear whose weight is stored in a dense type, with a result of a type of its own."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import FunctionProto, TensorProto
from onnx.defs import OpSchema

from mm2c.dialect.body import FLOAT, Body
from mm2c.dialect.schema import define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PLUGIN = None  # a plain matrix product: every engine's own library has it

SCHEMA = define(
    "M2DenseLinear",
    "y[..., N] = x[..., K] · w[N, K]ᵀ, summed in f32 and rounded once, to the ONNX dtype out_dtype: FLOAT for the "
    "head, whose logits are compared and sampled, else the type of x.",
    inputs=[("x", "T"), ("w", "W")],
    outputs=[("y", "O")],
    attributes=[("out_dtype", OpSchema.AttrType.INT)],
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    weight = b.Transpose(b.Cast("w", to=FLOAT), perm=[1, 0])
    product = b.MatMul(b.Cast("x", to=FLOAT), weight)
    return b.function(b.Cast(product, to=b.ref("out_dtype")))


def reference(x: Tensor, w: Tensor, out_dtype: int) -> Tensor:
    return (x.float() @ w.float().T).to(_torch_dtype(out_dtype))


def fake(x: Tensor, w: Tensor, out_dtype: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=_torch_dtype(out_dtype))


def _torch_dtype(out_dtype: int) -> torch.dtype:
    import torch

    known: dict[int, torch.dtype] = {
        TensorProto.FLOAT: torch.float32,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16,
    }
    return known[out_dtype]


@cache
def register_torch() -> TorchOp:
    signature = "(Tensor x, Tensor w, int out_dtype) -> Tensor"
    return register(SCHEMA, "dense_linear", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
