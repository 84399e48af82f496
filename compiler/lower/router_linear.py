"""cuda lowering, step 1: the router's logits in f32 from the gate weight as it is stored."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, add_weight, drop_unused
from mm2c.passes.edit import PassError, name_of, present
from mm2c_runtime.weights.recipe import Cast


def lower_router(rank: LoweredRank) -> None:
    """What M2MoeRouting reads as logits -> M2RouterLinear.

    Rewrite rules:
      1. [Cast](MatMul(x, Transpose([Cast](gate))))  -> M2RouterLinear(x, gate)
      2. a gate that is stored in neither bf16 nor f32 -> stored in f32, which holds it exactly

    The rounding of weight and logits to the activations' type goes: the op computes in f32.
    """
    for routing in [n for n in rank.model.graph if n.op_type == "M2MoeRouting"]:
        logits = present(routing.inputs[0])
        cast = _producer(logits, "Cast")
        product = _producer(present(cast.inputs[0]) if cast else logits, "MatMul")
        turned = _producer(present(product.inputs[1]), "Transpose") if product else None
        if product is None or turned is None:
            raise PassError(f"{routing.name}: its logits are no matrix product with a transposed weight")
        weight = present(turned.inputs[0])
        stored = _producer(weight, "Cast")
        name = name_of(stored.inputs[0] if stored else weight)
        recipe = rank.recipes[name]
        if recipe.dtype not in ("bf16", "f32"):
            add_weight(rank.model.graph, rank.recipes, name, Cast(recipe, "f32"))
        writer = Writer(rank.model, rank.recipes, routing, name.removesuffix(".weight"))
        gate = rank.model.graph.initializers[name]
        found = writer.one("M2RouterLinear", [product.inputs[0], gate], "logits", domain="mm2c")
        routing.replace_input_with(0, found)
    drop_unused(rank.model, rank.recipes)


def _producer(value: ir.Value, op_type: str) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == op_type else None
