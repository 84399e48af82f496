"""M2MoeRouting: sigmoid scores, the choice of experts by biased score, renormalised weights."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import FunctionProto, TensorProto
from onnx.defs import OpSchema

from mm2c.dialect.body import Body
from mm2c.dialect.schema import F32, I32, define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = "M2MoeRouting"

SCHEMA = define(
    "M2MoeRouting",
    "scores = sigmoid(logits[T, E]); ids[T, k]: the top_k experts by scores + bias[E], best "
    "first, equal scores by lower id; weights[T, k] = scores of those experts divided by their "
    "sum. Experts are numbered globally.",
    inputs=[("logits", F32), ("bias", F32)],
    outputs=[("weights", F32), ("ids", I32)],
    attributes=[("top_k", OpSchema.AttrType.INT)],
)


def route(b: Body) -> tuple[str, str]:
    """(weights f32[T, k], ids i32[T, k]) of the op's ``logits``, ``bias`` and ``top_k``."""
    scores = b.Sigmoid("logits")
    _, ids = b.TopK(b.Add(scores, "bias"), b.attribute("top_k"), outputs=2, axis=-1, largest=1, sorted=1)
    chosen = b.GatherElements(scores, ids, axis=1)
    weights = b.Div(chosen, b.ReduceSum(chosen, b.ints(-1), keepdims=1))
    return str(weights), str(b.Cast(ids, to=TensorProto.INT32))


def body() -> FunctionProto:
    b = Body(SCHEMA)
    return b.function(*route(b))


def reference(logits: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    import torch

    scores = torch.sigmoid(logits)
    ids = torch.sort(scores + bias, dim=-1, descending=True, stable=True).indices[:, :top_k]
    chosen = scores.gather(1, ids)
    return chosen / chosen.sum(-1, keepdim=True), ids.to(torch.int32)


def fake(logits: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    import torch

    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int32)


@cache
def register_torch() -> TorchOp:
    signature = "(Tensor logits, Tensor bias, int top_k) -> (Tensor, Tensor)"
    return register(SCHEMA, "moe_routing", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
