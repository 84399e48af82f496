"""Linears whose weight stays [N, K]: a Gemm with its second operand transposed. TensorRT builds no product with a
Transpose behind a block dequantisation."""

from __future__ import annotations

from onnx import FunctionProto

from mm2c.dialect import dense_linear, fp8_linear
from mm2c.lower.native.body import NativeBody

BLOCK_SHAPE = "block_shape"


def fp8_linear_body(activation: int) -> FunctionProto:
    b = NativeBody(fp8_linear.SCHEMA, [BLOCK_SHAPE])
    return b.function(_product(b, b.dequantized("w", "scale", BLOCK_SHAPE, activation)))


def dense_linear_body(activation: int) -> FunctionProto:
    """Products in the activations' dtype, summed in f32 and rounded to it: TensorRT's matrix products give the type
    that they take. The specification rounds logits once, from f32."""
    b = NativeBody(dense_linear.SCHEMA)
    return b.function(b.Cast(_product(b, b.Cast("w", to=activation)), to=b.ref("out_dtype")))


def _product(b: NativeBody, weight: str) -> str:
    """x[…, K] · weight[N, K]ᵀ → […, N]."""
    rows = b.Reshape("x", b.join(b.ints(-1), b.Shape("x", start=-1)))
    y = b.Gemm(rows, weight, transB=1)
    return str(b.Reshape(y, b.join(b.dims("x", 0, -1), b.dims(weight, 0, 1))))
