"""TRT_BlockDequantize: a layer to TensorRT, this body to ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, TensorProto, helper, numpy_helper

from mm2c.dialect.schema import DOMAIN
from mm2c.lower.native.body import BLOCK_DEQUANTIZE, OPSET


def body() -> FunctionProto:
    """y = w · the scale of its block. w[…, N, K] e4m3, s[…, n, k] f32; a block's sides are N / n and K / k, which is
    what ``block_shape`` says to TensorRT: every block is whole. y has the dtype ``output_dtype``; the product is made
    in f32 and rounded once."""
    nodes: list[onnx.NodeProto] = []

    def emit(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def ints(name: str, *values: int) -> str:
        tensor = numpy_helper.from_array(np.array(values, np.int64), name)
        return emit("Constant", [], name, value=tensor)

    # the leading axes as one: [E, N, K] and [E, n, k]
    emit("Shape", ["w"], "shape")
    emit("Shape", ["w"], "tail", start=-2)
    emit("Shape", ["s"], "blocks", start=-2)
    emit("Div", ["tail", "blocks"], "sides")
    zero, one, two = ints("zero", 0), ints("one", 1), ints("two", 2)
    minus = ints("minus", -1)
    for name, source in (("n", "blocks"), ("block_n", "sides")):
        emit("Slice", [source, zero, one], name)
    for name, source in (("k", "blocks"), ("block_k", "sides")):
        emit("Slice", [source, one, two], name)
    emit("Concat", [minus, "n", "block_n", "k", "block_k"], "in_blocks", axis=0)
    emit("Concat", [minus, "n", one, "k", one], "one_a_block", axis=0)
    emit("Reshape", ["s", "one_a_block"], "scales")
    emit("Cast", ["w"], "wide", to=TensorProto.FLOAT)
    emit("Reshape", ["wide", "in_blocks"], "cut")
    emit("Mul", ["cut", "scales"], "scaled")
    emit("Reshape", ["scaled", "shape"], "whole")
    last = helper.make_node("Cast", ["whole"], ["y"])
    reference = last.attribute.add()
    reference.name, reference.ref_attr_name, reference.type = "to", "output_dtype", onnx.AttributeProto.INT
    nodes.append(last)
    return helper.make_function(
        DOMAIN,
        BLOCK_DEQUANTIZE,
        ["w", "s"],
        ["y"],
        nodes,
        [helper.make_opsetid("", OPSET)],
        ["block_shape", "output_dtype"],
    )
