"""cuda lowering, step 4: the three projections of attention as one linear, in the format they are stored in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, drop_unused
from mm2c.passes.edit import name_of, present
from mm2c.passes.narrow import join

LINEARS = ("M2Fp8Linear", "M2DenseLinear")
ATTENTIONS = ("M2Attention", "M2PagedAttention")


def fuse_qkv_linear(rank: LoweredRank) -> None:
    """q, k, v of one layer by linears of one kind -> Split(linear(x, [q; k; v])).

    Rewrite rules:
      1. M2Fp8Linear of equal blocks: weights and scales joined by rows, if the rows of q and of k are whole
         blocks; else they are left apart, because a block's rows share a scale
      2. M2DenseLinear of one stored type: weights joined by rows
      3. linears of different kinds, or of different inputs, are left apart
    """
    for node in [n for n in rank.model.graph if n.op_type in ATTENTIONS]:
        linears = [present(value).producer() for value in node.inputs[:3]]
        known = [n for n in linears if n is not None and n.op_type in LINEARS]
        if len(known) == 3 and _joinable(rank, known):
            _fuse(rank, known)
    drop_unused(rank.model, rank.recipes)


def _joinable(rank: LoweredRank, linears: list[ir.Node]) -> bool:
    first = linears[0]
    if any(n.op_type != first.op_type or n.inputs[0] is not first.inputs[0] for n in linears):
        return False
    if any({k: a.value for k, a in n.attributes.items()} != _values(first) for n in linears):
        return False
    weights = [rank.recipes[name_of(n.inputs[1])] for n in linears]
    if len({(w.dtype, w.shape[1]) for w in weights}) != 1:
        return False
    if first.op_type == "M2DenseLinear":
        return True
    block = first.attributes["block_n"].as_int()
    return all(w.shape[0] % block == 0 for w in weights[:-1])


def _values(node: ir.Node) -> dict[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _fuse(rank: LoweredRank, linears: list[ir.Node]) -> None:
    order = {node: i for i, node in enumerate(rank.model.graph)}
    first = min(linears, key=lambda n: order[n])
    widths = [rank.recipes[name_of(n.inputs[1])].shape[0] for n in linears]
    module = name_of(linears[0].inputs[1]).removesuffix(".q_proj.weight")
    writer = Writer(rank.model, rank.recipes, first, f"{module}.qkv_proj")
    names = ("weight", "weight_scale_inv")
    tensors = [
        writer.weight(
            f"{module}.qkv_proj.{names[i - 1]}",
            join(tuple(rank.recipes[name_of(n.inputs[i])] for n in linears), 0),
        )
        for i in range(1, len(first.inputs))
    ]
    kind = linears[0].outputs[0].dtype or ir.DataType.FLOAT
    joined = writer.one(
        first.op_type, [first.inputs[0], *tensors], "linear", domain="mm2c", kind=kind, **_values(first)
    )
    sizes = writer.constant(f"qkv_widths.{'.'.join(map(str, widths))}", np.asarray(widths, np.int64))
    parts = writer.emit("Split", [joined, sizes], "split", outputs=3, kind=kind, axis=-1)
    for linear, part in zip(linears, parts, strict=True):
        writer.replace(linear, [part])
