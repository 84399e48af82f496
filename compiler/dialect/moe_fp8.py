"""M2MoeFp8: routing and the chosen experts of block-scaled e4m3 weights as one op."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import FunctionProto
from onnx.defs import OpSchema

from mm2c.dialect import moe_experts_fp8, moe_routing
from mm2c.dialect.blocks import dequantize
from mm2c.dialect.body import Body
from mm2c.dialect.experts import scan_experts
from mm2c.dialect.schema import E4M3, F32, define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = "M2MoeFp8"

SCHEMA = define(
    "M2MoeFp8",
    "M2MoeExpertsFp8 of x and of what M2MoeRouting makes of logits[T, all experts] and bias: a kernel that routes "
    "as it computes starts once where two would.",
    inputs=[
        ("x", "T"),
        ("logits", F32),
        ("bias", F32),
        ("w13", E4M3),
        ("w13_scale", F32),
        ("w2", E4M3),
        ("w2_scale", F32),
    ],
    outputs=[("y", "T")],
    attributes=[
        ("top_k", OpSchema.AttrType.INT),
        ("first_expert", OpSchema.AttrType.INT),
        ("block_n", OpSchema.AttrType.INT),
        ("block_k", OpSchema.AttrType.INT),
    ],
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    block_n, block_k = b.attribute("block_n"), b.attribute("block_k")

    def dense(block: Body, w13: str, w13_scale: str, w2: str, w2_scale: str) -> tuple[str, str]:
        return (
            dequantize(block, w13, w13_scale, block_n, block_k, parts=2),
            dequantize(block, w2, w2_scale, block_k, block_n),
        )

    weights, ids = moe_routing.route(b)
    stacked = ["w13", "w13_scale", "w2", "w2_scale"]
    return b.function(scan_experts(b, stacked, dense, weights=weights, ids=ids))


def reference(
    x: Tensor,
    logits: Tensor,
    bias: Tensor,
    w13: Tensor,
    w13_scale: Tensor,
    w2: Tensor,
    w2_scale: Tensor,
    top_k: int,
    first_expert: int,
    block_n: int,
    block_k: int,
) -> Tensor:
    weights, ids = moe_routing.reference(logits, bias, top_k)
    stored = (w13, w13_scale, w2, w2_scale)
    return moe_experts_fp8.reference(x, weights, ids, *stored, first_expert, block_n, block_k)


def fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


@cache
def register_torch() -> TorchOp:
    signature = (
        "(Tensor x, Tensor logits, Tensor bias, Tensor w13, Tensor w13_scale, Tensor w2, Tensor w2_scale, "
        "int top_k, int first_expert, int block_n, int block_k) -> Tensor"
    )
    return register(SCHEMA, "moe_fp8", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
