"""Fast lowering, step 5: residual additions fused with the norm behind them."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import CONTRIB, Writer, drop_unused
from mm2c.passes.edit import name_of, present


def fuse_norms(rank: LoweredRank) -> None:
    """RMSNormalization as ONNX Runtime's kernels.

    Rewrite rules:
      1. n = RMSNormalization(a + b, w), a and b of one shape -> SkipSimplifiedLayerNormalization(a, b, w);
         its fourth output stands for a + b where that is used again
      2. other RMSNormalization -> SimplifiedLayerNormalization
    """
    for node in [n for n in rank.model.graph if n.op_type == "RMSNormalization"]:
        x, weight = map(present, node.inputs)
        writer = Writer(rank.model, rank.recipes, node, name_of(weight).removesuffix(".weight"))
        epsilon = node.attributes["epsilon"].as_float()
        add = x.producer()
        if add is not None and add.op_type == "Add" and _is_first_use(rank, x, node):
            outputs = writer.emit(
                "SkipSimplifiedLayerNormalization",
                [*add.inputs, weight],
                "skip_norm",
                domain=CONTRIB,
                outputs=4,
                epsilon=epsilon,
            )
            for unused in outputs[1:3]:
                unused.name = ""
            writer.replace(node, [outputs[0]])
            writer.replace(add, [outputs[3]])
        else:
            norm = writer.one(
                "SimplifiedLayerNormalization", [x, weight], "norm", axis=-1, epsilon=epsilon, stash_type=1
            )
            writer.replace(node, [norm])
    drop_unused(rank.model, rank.recipes)


def _is_first_use(rank: LoweredRank, value: ir.Value, node: ir.Node) -> bool:
    """Whether ``node`` comes before every other user, so that the sum may be made there."""
    if any(output is value for output in rank.model.graph.outputs):
        return False
    order = {n: i for i, n in enumerate(rank.model.graph)}
    return all(order[user] >= order[node] for user in value.consumers())
