"""cuda lowering, step 6: routing and experts as one op."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, drop_unused
from mm2c.passes.edit import PassError, name_of, present

FUSED = {"M2MoeExpertsFp8": "M2MoeFp8", "M2MoeExpertsBf16": "M2MoeBf16"}


def fuse_moe(rank: LoweredRank) -> None:
    """M2MoeExperts*(x, M2MoeRouting(logits, bias), weights…) -> M2Moe*(x, logits, bias, weights…).

    Requires that nothing else reads what M2MoeRouting gives.
    """
    for node in [n for n in rank.model.graph if n.op_type in FUSED]:
        x, weights, ids = map(present, node.inputs[:3])
        routing = weights.producer()
        if routing is None or routing.op_type != "M2MoeRouting" or ids.producer() is not routing:
            raise PassError(f"{node.name}: the experts' weights do not come from M2MoeRouting")
        if any(user is not node for value in routing.outputs for user in value.consumers()):
            raise PassError(f"{routing.name}: the router's choice is read elsewhere too")
        writer = Writer(rank.model, rank.recipes, node, name_of(node.inputs[3]).removesuffix(".gate_up_proj"))
        own = {name: attribute.value for name, attribute in node.attributes.items()}
        fused = writer.one(
            FUSED[node.op_type],
            [x, *routing.inputs, *node.inputs[3:]],
            "moe",
            domain="mm2c",
            kind=node.outputs[0].dtype or ir.DataType.FLOAT,
            top_k=routing.attributes["top_k"].as_int(),
            **own,
        )
        writer.replace(node, [fused])
    drop_unused(rank.model, rank.recipes)
