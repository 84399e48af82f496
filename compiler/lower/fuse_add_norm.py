"""cuda lowering, step 7: residual additions with the norm behind them."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, drop_unused
from mm2c.passes.edit import name_of, present


def fuse_add_norm(rank: LoweredRank) -> None:
    """RMSNormalization(residual + x, weight) -> M2AddRmsNorm(x, residual, weight).

    Its second output stands for the sum wherever that is read again. What is added may come from a collective.
    A norm of anything but a sum (the embedding's) stays as it is.
    """
    for node in [n for n in rank.model.graph if n.op_type == "RMSNormalization"]:
        total, weight = map(present, node.inputs)
        add = total.producer()
        if add is None or add.op_type != "Add" or any(present(v).is_initializer() for v in add.inputs):
            continue
        residual, x = add.inputs
        # at the place of the sum: others may read it before the norm
        writer = Writer(rank.model, rank.recipes, add, name_of(weight).removesuffix(".weight"))
        y, summed = writer.emit(
            "M2AddRmsNorm",
            [x, residual, weight],
            "add_norm",
            domain="mm2c",
            outputs=2,
            kind=node.outputs[0].dtype or ir.DataType.FLOAT,
            eps=node.attributes["epsilon"].as_float(),
        )
        writer.replace(node, [y])
        writer.replace(add, [summed])
    drop_unused(rank.model, rank.recipes)
