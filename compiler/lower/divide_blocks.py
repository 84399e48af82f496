"""Lowering for TensorRT: no weight is one single scale block."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer
from mm2c.passes.edit import PassError, name_of, present


def divide_single_blocks(rank: LoweredRank) -> None:
    """A weight of one block is said to have two, with the same scale: TensorRT takes a scale of one element for that of
    a whole tensor, and refuses its two dimensions. Models of true size have no such weight.

    Rewrite rule, for M2Fp8Linear: scale[1, 1] -> Expand(scale, [2, 1]) with block_n halved.
    """
    for node in [n for n in rank.model.graph if n.op_type == "M2Fp8Linear"]:
        scale = present(node.inputs[2])
        if rank.recipes[name_of(scale)].shape != (1, 1):
            continue
        rows = rank.recipes[name_of(node.inputs[1])].shape[0]
        if rows % 2:
            raise PassError(f"{node.name}: a weight of {rows} rows is no two blocks")
        writer = Writer(rank.model, rank.recipes, node, name_of(scale))
        twice = writer.one("Expand", [scale, writer.constant("two_blocks", [2, 1])], "twice")
        node.replace_input_with(2, twice)
        node.attributes["block_n"] = ir.AttrInt64("block_n", rows // 2)
