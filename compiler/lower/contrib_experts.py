"""Fast lowering, step 4: the experts on the MoE operator."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.contrib_routing import Routes, route
from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, as_f32, dequantized, drop_unused
from mm2c.passes.edit import PassError, name_of, present
from mm2c.passes.narrow import join, narrow
from mm2c_runtime.weights.recipe import Interleave, Recipe

# The operator deals its experts out to threads in equal runs, before it knows which are chosen: of 4 experts
# for one token, 3 often fall to one of 2 threads. Cut in halves, run 0 holding the first half of every expert
# and run 1 the second, two threads have equal work whatever is chosen.
SLICES = 2


def lower_experts(rank: LoweredRank) -> None:
    """M2MoeRouting with M2MoeExperts* -> com.microsoft.MoE.

    Rewrite rules:
      1. the router's choice becomes the operator's probabilities, see ``contrib_routing``
      2. an expert of width I becomes SLICES experts of width I / SLICES, all of them chosen with it: w13
         [E, 2I, H] -> [SLICES·E, 2I / SLICES, H], gate and up rows alternating as the operator's fused SwiGLU
         has them; w2 [E, H, I] -> [SLICES·E, H, I / SLICES]; both f32
      3. the operator gives each slice 1 / SLICES of its expert's weight: its result is multiplied by SLICES
      4. experts split over ranks: it normalises over the local ones, so its result is also multiplied by
         their share of the weight
      5. the Reshapes to [B·S, H] in front and back to [B, S, H] behind (or behind the all_reduce) fall away:
         the operator takes both forms, only its probabilities must be [B·S, E]
    """
    for node in [n for n in rank.model.graph if n.op_type in ("M2MoeExpertsFp8", "M2MoeExpertsBf16")]:
        _lower(rank, node)
    drop_unused(rank.model, rank.recipes)


def _lower(rank: LoweredRank, node: ir.Node) -> None:
    stays_flat = not _unflatten(node)
    x, weights = map(present, node.inputs[:2])
    routing = weights.producer()
    if routing is None or routing.op_type != "M2MoeRouting":
        raise PassError(f"{node.name}: the experts' weights do not come from M2MoeRouting")
    gate_up, down = _dense(rank, node)
    experts, width = gate_up[1].shape[0], gate_up[1].shape[1] // 2
    slices = SLICES if width % SLICES == 0 else 1
    writer = Writer(rank.model, rank.recipes, node, gate_up[0].removesuffix(".gate_up_proj"))
    routes = route(writer, routing, rank.recipes, node.attributes["first_expert"].as_int(), experts)
    probs = writer.one("Concat", [routes.logs] * slices, "probs", axis=-1) if slices > 1 else routes.logs
    if not stays_flat:
        rows = writer.constant(f"rows_of_{experts * slices}", [-1, experts * slices])
        probs = writer.one("Reshape", [probs, rows], "flat_probs")
    result = writer.contrib(
        "MoE",
        [
            x,
            probs,
            writer.weight(f"{gate_up[0]}.moe", _sliced(Interleave(gate_up[1], 1), 1, slices)),
            None,
            writer.weight(f"{down[0]}.moe", _sliced(down[1], 2, slices)),
        ],
        "moe",
        k=routes.top_k * slices,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=1,
    )
    writer.replace(node, [_weighed(writer, result, routes, slices)])


def _weighed(writer: Writer, result: ir.Value, routes: Routes, slices: int) -> ir.Value:
    """Rules 3 and 4."""
    factor = writer.constant(f"times_{slices}", float(slices))
    if routes.sums is None:
        return writer.one("Mul", [result, factor], "weighed") if slices > 1 else result
    share = writer.one("Mul", [writer.one("Div", routes.sums, "share"), factor], "weight")
    return writer.one("Mul", [result, share], "weighed")


def _sliced(recipe: Recipe, axis: int, slices: int) -> Recipe:
    """[E, …] cut into equal slices along ``axis``, stacked slice after slice: [slices · E, …]."""
    width = recipe.shape[axis] // slices
    return join(tuple(narrow(recipe, axis, i * width, (i + 1) * width) for i in range(slices)), 0)


def _unflatten(node: ir.Node) -> bool:
    """Apply rule 5 around the experts if both Reshapes are there; says whether it did."""
    into = present(node.inputs[0]).producer()
    result = node.outputs[0]
    if len(result.consumers()) == 1 and result.consumers()[0].op_type == "DistCollective":
        result = result.consumers()[0].outputs[0]
    back = result.consumers()[0] if len(result.consumers()) == 1 else None
    if into is None or back is None or into.op_type != "Reshape" or back.op_type != "Reshape":
        return False
    into.outputs[0].replace_all_uses_with(present(into.inputs[0]))
    back.outputs[0].replace_all_uses_with(result)
    return True


def _dense(rank: LoweredRank, node: ir.Node) -> tuple[tuple[str, Recipe], tuple[str, Recipe]]:
    """(name, f32 recipe) of gate_up_proj and of down_proj."""
    names = [name_of(value) for value in node.inputs[3:]]
    recipes = [rank.recipes[name] for name in names]
    if node.op_type == "M2MoeExpertsFp8":
        w13, w13_scale, w2, w2_scale = recipes
        down = dequantized(w2, w2_scale, node, turned=True)  # its second axis is the intermediate one
        return (names[0], dequantized(w13, w13_scale, node)), (names[2], down)
    return (names[0], as_f32(recipes[0])), (names[1], as_f32(recipes[1]))
