"""DistCollective: what ranks say to each other, placed by the sharding passes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import FunctionProto
from onnx.defs import OpSchema

from mm2c.dialect.body import Body
from mm2c.dialect.schema import define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = None  # TensorRT has a native layer; ONNX Runtime graphs are cut here

SCHEMA = define(
    "DistCollective",
    "collective_operation is all_reduce (reduce_op sum), all_gather (concatenation along axis) or reduce_scatter "
    "(the sum is cut along axis into as many equal parts as a group has ranks, rank i of the group gets part i). "
    "groups holds the ranks of every group, group_size after group_size; nb_rank is the number "
    "of ranks. Over one rank it is the identity, which is all that the body says: graphs for "
    "several ranks are cut at this op or run by an engine with collectives.",
    inputs=[("x", "T")],
    outputs=[("y", "T")],
    attributes=[
        ("collective_operation", OpSchema.AttrType.STRING),
        ("reduce_op", OpSchema.AttrType.STRING),
        ("root", OpSchema.AttrType.INT),
        ("nb_rank", OpSchema.AttrType.INT),
        ("groups", OpSchema.AttrType.INTS),
        ("group_size", OpSchema.AttrType.INT),
        ("axis", OpSchema.AttrType.INT),
    ],
)


def body() -> FunctionProto:
    return Body(SCHEMA).function("x")


def reference(
    x: Tensor,
    collective_operation: str,
    reduce_op: str,
    root: int,
    nb_rank: int,
    groups: list[int],
    group_size: int,
    axis: int,
) -> Tensor:
    if nb_rank != 1:
        raise NotImplementedError(f"DistCollective over {nb_rank} ranks has no single-process reference")
    return x.clone()


def fake(
    x: Tensor,
    collective_operation: str,
    reduce_op: str,
    root: int,
    nb_rank: int,
    groups: list[int],
    group_size: int,
    axis: int,
) -> Tensor:
    shape = list(x.shape)
    if collective_operation == "all_gather":
        shape[axis] = shape[axis] * group_size
    elif collective_operation == "reduce_scatter":
        shape[axis] = shape[axis] // group_size
    return x.new_empty(shape)


@cache
def register_torch() -> TorchOp:
    signature = (
        "(Tensor x, str collective_operation, str reduce_op, int root, int nb_rank, int[] groups, "
        "int group_size, int axis) -> Tensor"
    )
    return register(SCHEMA, "dist_collective", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
