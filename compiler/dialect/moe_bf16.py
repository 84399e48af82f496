"""M2MoeBf16: routing and the chosen experts of weights that are not FP8 as one op."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import FunctionProto
from onnx.defs import OpSchema

from mm2c.dialect import moe_experts_bf16, moe_routing
from mm2c.dialect.body import Body
from mm2c.dialect.experts import scan_experts
from mm2c.dialect.schema import F32, define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = "M2MoeBf16"

SCHEMA = define(
    "M2MoeBf16",
    "As M2MoeFp8 with the weights of M2MoeExpertsBf16.",
    inputs=[("x", "T"), ("logits", F32), ("bias", F32), ("w13", "W"), ("w2", "W")],
    outputs=[("y", "T")],
    attributes=[("top_k", OpSchema.AttrType.INT), ("first_expert", OpSchema.AttrType.INT)],
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    weights, ids = moe_routing.route(b)
    result = scan_experts(b, ["w13", "w2"], lambda block, w13, w2: (w13, w2), weights=weights, ids=ids)
    return b.function(result)


def reference(
    x: Tensor, logits: Tensor, bias: Tensor, w13: Tensor, w2: Tensor, top_k: int, first_expert: int
) -> Tensor:
    weights, ids = moe_routing.reference(logits, bias, top_k)
    return moe_experts_bf16.reference(x, weights, ids, w13, w2, first_expert)


def fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


@cache
def register_torch() -> TorchOp:
    signature = (
        "(Tensor x, Tensor logits, Tensor bias, Tensor w13, Tensor w2, int top_k, int first_expert) -> Tensor"
    )
    return register(SCHEMA, "moe_bf16", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
