"""cuda lowering, step 3: dense linears as one op that takes the weight as it is stored, [N, K]."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, drop_unused
from mm2c.passes.edit import name_of, present
from mm2c.passes.shard_vocabulary import HEAD

# what lies between the head and the graph's logits
BEHIND_HEAD = ("DistCollective", "Slice", "CastLike", "Pad")


def lower_dense_linears(rank: LoweredRank) -> None:
    """MatMul(x, Transpose(weight)) -> M2DenseLinear(x, weight).

    Rewrite rules:
      1. a linear gives the type of x
      2. the head gives f32, and so does all behind it: logits are gathered, returned and sampled in f32
    """
    for node in [n for n in rank.model.graph if n.op_type == "MatMul"]:
        x, turned = map(present, node.inputs)
        transpose = turned.producer()
        if transpose is None or transpose.op_type != "Transpose":
            continue
        weight = present(transpose.inputs[0])
        if weight.name not in rank.recipes:
            continue
        kind = ir.DataType.FLOAT if weight.name == HEAD else node.outputs[0].dtype
        if kind is None:
            raise ValueError(f"{node.name}: the product has no type")
        writer = Writer(rank.model, rank.recipes, node, name_of(weight).removesuffix(".weight"))
        y = writer.one("M2DenseLinear", [x, weight], "dense", domain="mm2c", kind=kind, out_dtype=int(kind))
        node.outputs[0].type = y.type
        if weight.name == HEAD:
            _widen(node.outputs[0])
        writer.replace(node, [y])
    drop_unused(rank.model, rank.recipes)


def _widen(value: ir.Value) -> None:
    value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in value.consumers():
        if node.op_type in BEHIND_HEAD:
            _widen(node.outputs[0])
