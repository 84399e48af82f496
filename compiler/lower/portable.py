"""The portable lowering: the dialect's own function bodies, in standard ONNX. The oracle of the others."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.dialect import ops
from mm2c.lower.program import LoweredRank
from mm2c.weights.rank_graph import RankGraph


def lower_portable(graph: RankGraph) -> LoweredRank:
    """A new graph with the body of every dialect op that it uses; ``graph`` is left as it is.

    Any batch of ragged rows runs, padding included. The cache outputs are new tensors. DistCollective gets
    no body: the graph is cut there.
    """
    model = graph.model.clone()
    attach_bodies(model, collectives=False)
    return LoweredRank(model, dict(graph.recipes), in_place=False, padded=True)


def attach_bodies(model: ir.Model, *, collectives: bool) -> None:
    """Add to ``model`` the function body of every dialect op it uses, in place. With ``collectives`` also
    that of DistCollective, which then computes what a single rank would."""
    used = {node.op_type for node in model.graph if node.domain == "mm2c"}
    for op_type in sorted(used):
        if op_type == "DistCollective" and not collectives:
            continue
        function = ir.serde.deserialize_function(ops[op_type].body())
        model.functions[function.identifier()] = function
    model.opset_imports["mm2c"] = 1
