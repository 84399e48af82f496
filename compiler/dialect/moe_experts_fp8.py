"""M2MoeExpertsFp8: the chosen experts of block-scaled e4m3 weights."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import FunctionProto
from onnx.defs import OpSchema

from mm2c.dialect.blocks import dequantize, dequantize_reference
from mm2c.dialect.body import Body
from mm2c.dialect.experts import experts_reference, scan_experts
from mm2c.dialect.schema import E4M3, F32, I32, define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = "M2MoeExpertsFp8"

SCHEMA = define(
    "M2MoeExpertsFp8",
    "y[T, H] = Σ over the top_k choices of weights[T, k] · w2 · (silu(gate) · up), gate and up "
    "being the first and second half of w13 · x. w13[E, 2I, H], w2[E, H, I] e4m3 with a scale for each "
    "block, block_n long along I and block_k along H in both of them, gate and up being divided "
    "apart: w13_scale[E, 2·ceil(I/block_n), ceil(H/block_k)], w2_scale[E, ceil(H/block_k), "
    "ceil(I/block_n)]. They hold experts first_expert … first_expert + E - 1; other ids "
    "contribute nothing.",
    inputs=[
        ("x", "T"),
        ("weights", F32),
        ("ids", I32),
        ("w13", E4M3),
        ("w13_scale", F32),
        ("w2", E4M3),
        ("w2_scale", F32),
    ],
    outputs=[("y", "T")],
    attributes=[
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

    return b.function(scan_experts(b, ["w13", "w13_scale", "w2", "w2_scale"], dense))


def reference(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    w13: Tensor,
    w13_scale: Tensor,
    w2: Tensor,
    w2_scale: Tensor,
    first_expert: int,
    block_n: int,
    block_k: int,
) -> Tensor:
    def dense(expert: int) -> tuple[Tensor, Tensor]:
        return (
            dequantize_reference(w13[expert], w13_scale[expert], block_n, block_k, parts=2),
            dequantize_reference(w2[expert], w2_scale[expert], block_k, block_n),
        )

    return experts_reference(x, weights, ids, first_expert, w13.shape[0], dense)


def fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


@cache
def register_torch() -> TorchOp:
    signature = (
        "(Tensor x, Tensor weights, Tensor ids, Tensor w13, Tensor w13_scale, Tensor w2, Tensor w2_scale, "
        "int first_expert, int block_n, int block_k) -> Tensor"
    )
    return register(SCHEMA, "moe_experts_fp8", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
