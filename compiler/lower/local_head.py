"""Leave the logits where they are: a rank's program ends with those of its own part of the vocabulary."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import drop_unused
from mm2c.passes.edit import PassError, present

GATHER = "lm_head.all_gather"


def lower_to_local_head(rank: LoweredRank) -> None:
    """The graph's output ``logits`` becomes what the head's all_gather was given: [rows, ceil(V / tp)], of which the
    last rank's last columns may be padding. The runtime gathers candidates, or the logits where a row needs them all.

    Requires the all_gather behind the head, and behind that nothing but the cut to the vocabulary.
    """
    graph = rank.model.graph
    gather = next((node for node in graph if node.name == GATHER), None)
    if gather is None:
        raise PassError(f"the graph has no {GATHER}")
    users = gather.outputs[0].consumers()
    if len(users) != 1 or users[0].op_type != "Slice" or users[0].outputs[0] is not graph.outputs[0]:
        raise PassError(f"{GATHER} is followed by something else than the cut to the vocabulary")
    own, whole = present(gather.inputs[0]), graph.outputs[0]
    name = whole.name
    whole.name = f"{name}.whole"
    own.name, own.type = name, whole.type
    own.shape = None if whole.shape is None else ir.Shape([*whole.shape[:-1], None])
    graph.outputs[0] = own
    graph.remove([users[0], gather], safe=True)
    drop_unused(rank.model, rank.recipes)
