"""Which body each op gets."""

from __future__ import annotations

from onnx import FunctionProto

from mm2c.dialect import ops
from mm2c.lower.native import attention, block_dequantize, experts, linear, paged_attention
from mm2c.lower.native.body import BLOCK_DEQUANTIZE, OPSET
from mm2c.lower.native.experts import Form

# bodies of the specification that are made of native layers already
AS_SPECIFIED = ("M2QkSumSquares", "M2RouterLinear", "M2AddRmsNorm", "DistCollective")


def native_bodies(used: set[str], form: Form, activation: int) -> list[FunctionProto]:
    """The bodies of the ops in ``used`` and of what these call. ``activation``: the ONNX number of the activations'
    dtype. KeyError for an op without one."""
    own = {
        "M2Fp8Linear": lambda: linear.fp8_linear_body(activation),
        "M2DenseLinear": lambda: linear.dense_linear_body(activation),
        "M2Attention": attention.attention_body,
        "M2PagedAttention": paged_attention.paged_attention_body,
        "M2MoeFp8": lambda: experts.moe_fp8_body(form, activation),
        "M2MoeBf16": lambda: experts.moe_bf16_body(form, activation),
        BLOCK_DEQUANTIZE: block_dequantize.body,
    }
    found = {}
    for name in sorted(used):
        found[name] = own[name]() if name in own else _specified(name)
    for function in list(found.values()):
        for node in function.node:
            if node.domain and node.op_type not in found:
                found[node.op_type] = own[node.op_type]()
    return [found[name] for name in sorted(found)]


def _specified(name: str) -> FunctionProto:
    if name not in AS_SPECIFIED:
        raise KeyError(f"{name} has no body of native layers")
    function = ops[name].body()
    for opset in function.opset_import:
        if opset.domain == "":
            opset.version = OPSET
    return function
