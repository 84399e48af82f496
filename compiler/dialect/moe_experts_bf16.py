"""M2MoeExpertsBf16: the chosen experts of weights that are not FP8: bf16 as released, f16 or f32 too."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import FunctionProto
from onnx.defs import OpSchema

from mm2c.dialect.body import Body
from mm2c.dialect.experts import experts_reference, scan_experts
from mm2c.dialect.schema import F32, I32, define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = "M2MoeExpertsBf16"

SCHEMA = define(
    "M2MoeExpertsBf16",
    "As M2MoeExpertsFp8 with w13[E, 2I, H] and w2[E, H, I] of any dense type, cast to that of x "
    "as they are used.",
    inputs=[("x", "T"), ("weights", F32), ("ids", I32), ("w13", "W"), ("w2", "W")],
    outputs=[("y", "T")],
    attributes=[("first_expert", OpSchema.AttrType.INT)],
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    return b.function(scan_experts(b, ["w13", "w2"], lambda block, w13, w2: (w13, w2)))


def reference(x: Tensor, weights: Tensor, ids: Tensor, w13: Tensor, w2: Tensor, first_expert: int) -> Tensor:
    return experts_reference(x, weights, ids, first_expert, w13.shape[0], lambda e: (w13[e], w2[e]))


def fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


@cache
def register_torch() -> TorchOp:
    signature = "(Tensor x, Tensor weights, Tensor ids, Tensor w13, Tensor w2, int first_expert) -> Tensor"
    return register(SCHEMA, "moe_experts_bf16", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
