"""cuda lowering, step 2: a weight that a graph casts before using it is stored in the type it is cast to."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import DTYPES, add_weight, drop_unused
from mm2c.passes.edit import name_of
from mm2c_runtime.weights.recipe import Cast, Recipe

EXPERTS = "M2MoeExpertsBf16"


def fold_casts(rank: LoweredRank, activation: ir.DataType) -> None:
    """Dense weights in the type that the kernels read, so that nothing is cast at run time.

    Rewrite rules:
      1. Cast(weight)               -> the weight stored in that type
      2. Cast(Gather(weight, ids))  -> Gather(weight stored in that type, ids)
      3. the dense experts' weights -> stored in ``activation``, which their op casts them to
    """
    for node in [n for n in rank.model.graph if n.op_type == "Cast"]:
        source = node.inputs[0]
        gather = source.producer() if source is not None else None
        kind = DTYPES.get(ir.DataType(node.attributes["to"].as_int()))
        if kind is None:
            continue  # of lengths and indices
        if source is not None and source.name in rank.recipes:
            users = {user for user in source.consumers() if user is not node}
            suffix = f".{kind}" if users else ""  # someone else reads it as it is
            node.outputs[0].replace_all_uses_with(_stored(rank, source.name, kind, suffix))
        elif gather is not None and gather.op_type == "Gather" and _reads_weight(rank, gather):
            if len(gather.outputs[0].consumers()) != 1:
                continue
            gather.replace_input_with(0, _stored(rank, name_of(gather.inputs[0]), kind, ""))
            gather.outputs[0].type = node.outputs[0].type
            node.outputs[0].replace_all_uses_with(gather.outputs[0])
    for node in [n for n in rank.model.graph if n.op_type == EXPERTS]:
        for index in (3, 4):
            name = name_of(node.inputs[index])
            node.replace_input_with(index, _stored(rank, name, DTYPES[activation], ""))
    drop_unused(rank.model, rank.recipes)


def _reads_weight(rank: LoweredRank, gather: ir.Node) -> bool:
    data = gather.inputs[0]
    return data is not None and data.name in rank.recipes and len(data.consumers()) == 1


def _stored(rank: LoweredRank, name: str, kind: str, suffix: str) -> ir.Value:
    recipe: Recipe = rank.recipes[name]
    if recipe.dtype == kind:
        return rank.model.graph.initializers[name]
    return add_weight(rank.model.graph, rank.recipes, f"{name}{suffix}", Cast(recipe, kind))  # type: ignore[arg-type]
