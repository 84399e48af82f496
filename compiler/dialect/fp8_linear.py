"""M2Fp8Linear: a linear whose weight is stored as block-scaled e4m3."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import FunctionProto
from onnx.defs import OpSchema

from mm2c.dialect.blocks import dequantize, dequantize_reference
from mm2c.dialect.body import Body
from mm2c.dialect.schema import E4M3, F32, define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = "M2Fp8Linear"

SCHEMA = define(
    "M2Fp8Linear",
    "y[..., N] = x[..., K] · (w[N, K] e4m3 × scale[ceil(N/block_n), ceil(K/block_k)])ᵀ, without bias.",
    inputs=[("x", "T"), ("w", E4M3), ("scale", F32)],
    outputs=[("y", "T")],
    attributes=[("block_n", OpSchema.AttrType.INT), ("block_k", OpSchema.AttrType.INT)],
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    dense = dequantize(b, "w", "scale", b.attribute("block_n"), b.attribute("block_k"))
    return b.function(b.MatMul("x", b.CastLike(b.Transpose(dense, perm=[1, 0]), "x")))


def reference(x: Tensor, w: Tensor, scale: Tensor, block_n: int, block_k: int) -> Tensor:
    return x @ dequantize_reference(w, scale, block_n, block_k).to(x.dtype).T


def fake(x: Tensor, w: Tensor, scale: Tensor, block_n: int, block_k: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]))


@cache
def register_torch() -> TorchOp:
    signature = "(Tensor x, Tensor w, Tensor scale, int block_n, int block_k) -> Tensor"
    return register(SCHEMA, "fp8_linear", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
