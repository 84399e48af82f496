"""Lowering for TensorRT: what is gathered from ranks is put together along the first axis, and turned afterwards."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer
from mm2c.passes.edit import PassError, present


def gather_along_first_axis(rank: LoweredRank, axes: int) -> None:
    """all_gather along the last axis of a value of ``axes`` axes: TensorRT's layer knows the first axis alone.

    Rewrite rule, for g ranks: all_gather(x[..., n], axis -1) -> all_gather(x, axis 0) as [g, ..., n], the axis of the
    ranks moved before the last one, and both joined: [..., g·n].
    """
    for node in [n for n in rank.model.graph if n.op_type == "DistCollective"]:
        if node.attributes["collective_operation"].as_string() != "all_gather":
            continue
        if node.attributes["axis"].as_int() != -1:
            raise PassError(f"{node.name}: gathered along axis {node.attributes['axis'].as_int()}")
        (x,) = map(present, node.inputs)
        ranks = node.attributes["group_size"].as_int()
        kind = x.dtype or ir.DataType.FLOAT
        writer = Writer(rank.model, rank.recipes, node, str(node.name))
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        attributes |= {"axis": 0, "reduce_op": "none"}  # TensorRT takes no reduction with a gather
        rows = writer.one("DistCollective", [x], "rows", domain="mm2c", kind=kind, **attributes)
        i64 = ir.DataType.INT64
        sizes = writer.one("Shape", [x], "sizes", kind=i64)
        apart = writer.one(
            "Concat", [writer.constant(f"i64_{ranks}", [ranks]), sizes], "apart", kind=i64, axis=0
        )
        parts = writer.one("Reshape", [rows, apart], "parts", kind=kind)
        order = [*range(1, axes), 0, axes]
        turned = writer.one("Transpose", [parts], "turned", kind=kind, perm=order)
        leading = writer.one("Shape", [x], "leading", kind=i64, end=-1)
        rest = writer.constant("i64_rest", np.array([-1], np.int64))
        joined = writer.one("Concat", [leading, rest], "joined", kind=i64, axis=0)
        writer.replace(node, [writer.one("Reshape", [turned, joined], "whole", kind=kind)])
