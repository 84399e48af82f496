"""Fast lowering, step 4: routing and experts on the MoE operator."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, as_f32, dequantized, drop_unused
from mm2c.passes.edit import name_of, present
from mm2c.weights.recipe import Interleave

_UNCHOSEN = -1e30  # log score of an expert that was not chosen
_LEAST = 1e-38  # stands for the score 0, so that its logarithm is finite


def lower_experts(rank: LoweredRank) -> None:
    """M2MoeRouting with M2MoeExperts* -> com.microsoft.MoE.

    The operator chooses top-k of what it is given and weighs by their softmax. softmax(log s) = s / Σ s, so
    it reproduces sigmoid routing exactly when it is given log s for the chosen experts and nearly -inf for
    the others.

    Rewrite rules:
      1. s = sigmoid(logits); ids = TopK(s + bias); chosen = s at ids; probs = log chosen scattered over -1e30
      2. w13 [E, 2I, H] -> rows of gate and up alternating (the operator's fused SwiGLU), f32; w2 as it is,
         f32
      3. the Reshapes to [B·S, H] in front and back to [B, S, H] behind (or behind the all_reduce) fall away:
         the operator takes both forms, only its probabilities must be [B·S, E]
      4. experts split over ranks: the operator sees the scores of the local experts and normalises over
         them, so its result is multiplied by their share Σ local chosen / Σ chosen, and it chooses
         min(top_k, local experts)
    """
    for node in [n for n in rank.model.graph if n.op_type in ("M2MoeExpertsFp8", "M2MoeExpertsDense")]:
        _lower(rank, node)
    drop_unused(rank.model, rank.recipes)


def _lower(rank: LoweredRank, node: ir.Node) -> None:
    stays_flat = not _unflatten(node)
    x, weights = node.inputs[0], node.inputs[1]
    routing = weights.producer() if weights is not None else None
    if routing is None or routing.op_type != "M2MoeRouting":
        raise ValueError(f"{node.name}: the experts' weights do not come from M2MoeRouting")
    name = str(node.inputs[3].name) if node.inputs[3] is not None else ""
    scope = name.removesuffix(".gate_up_proj")
    writer = Writer(rank.model, rank.recipes, node, scope)
    gate_up, down = _expert_weights(rank, node, writer)
    local, top_k = rank.recipes[name].shape[0], routing.attributes["top_k"].as_int()
    logits, bias = routing.inputs
    experts = rank.recipes[name_of(bias)].shape[0]

    score = writer.one("Sigmoid", [logits], "score")
    biased = writer.one("Add", [score, bias], "biased")
    _, ids = writer.emit(
        "TopK", [biased, writer.constant("top_k", [top_k])], "choice", outputs=2, axis=-1, largest=1, sorted=1
    )
    ids.type = ir.TensorType(ir.DataType.INT64)
    chosen = writer.one("GatherElements", [score, ids], "chosen", axis=-1)
    if local == experts:
        # Clip with equal bounds fills a tensor of the scores' shape in one step
        floor = writer.constant("unchosen", _UNCHOSEN)
        empty = writer.one("Clip", [score, floor, floor], "empty")
        probs = writer.one(
            "ScatterElements", [empty, ids, writer.one("Log", [chosen], "log")], "probs", axis=-1
        )
        probs = probs if stays_flat else writer.one("Reshape", [probs, _rows(writer, local)], "flat_probs")
        result = _moe(writer, x, probs, gate_up, down, top_k)
    else:
        first = node.attributes["first_expert"].as_int()
        zero = writer.constant("zero", 0.0)
        empty = writer.one("Clip", [score, zero, zero], "empty")
        spread = writer.one("ScatterElements", [empty, ids, chosen], "spread", axis=-1)
        bounds = [writer.constant(f"at_{i}", [i]) for i in (first, first + local)]
        axis = writer.constant("last_axis", [-1])
        own = writer.one("Slice", [spread, *bounds, axis], "own")
        probs = writer.one(
            "Log", [writer.one("Clip", [own, writer.constant("least", _LEAST)], "positive")], "probs"
        )
        probs = probs if stays_flat else writer.one("Reshape", [probs, _rows(writer, local)], "flat_probs")
        result = _moe(writer, x, probs, gate_up, down, min(top_k, local))
        of_own = writer.one("ReduceSum", [own, axis], "of_own", keepdims=1)
        of_all = writer.one("ReduceSum", [chosen, axis], "of_all", keepdims=1)
        result = writer.one("Mul", [result, writer.one("Div", [of_own, of_all], "share")], "shared")
    writer.replace(node, [result])


def _unflatten(node: ir.Node) -> bool:
    """Apply rule 3 around the experts if both Reshapes are there; says whether it did."""
    into = node.inputs[0].producer() if node.inputs[0] is not None else None
    result = node.outputs[0]
    if len(result.consumers()) == 1 and result.consumers()[0].op_type == "DistCollective":
        result = result.consumers()[0].outputs[0]
    back = result.consumers()[0] if len(result.consumers()) == 1 else None
    if into is None or back is None or into.op_type != "Reshape" or back.op_type != "Reshape":
        return False
    into.outputs[0].replace_all_uses_with(present(into.inputs[0]))
    back.outputs[0].replace_all_uses_with(result)
    return True


def _rows(writer: Writer, experts: int) -> ir.Value:
    return writer.constant(f"rows_of_{experts}", [-1, experts])


def _moe(
    writer: Writer, x: ir.Value | None, probs: ir.Value, gate_up: ir.Value, down: ir.Value, top_k: int
) -> ir.Value:
    return writer.contrib(
        "MoE",
        [x, probs, gate_up, None, down],
        "moe",
        k=top_k,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=1,
    )


def _expert_weights(rank: LoweredRank, node: ir.Node, writer: Writer) -> tuple[ir.Value, ir.Value]:
    names = [str(value.name) for value in node.inputs[3:] if value is not None]
    if node.op_type == "M2MoeExpertsFp8":
        w13, s13, w2, s2 = (rank.recipes[name] for name in names)
        w13, w2 = dequantized(w13, s13, node), dequantized(w2, s2, node)
        down = names[2]
    else:
        w13, w2 = (as_f32(rank.recipes[name]) for name in names)
        down = names[1]
    return (
        writer.weight(f"{names[0]}.interleaved", Interleave(w13, 1)),
        writer.weight(f"{down}.f32", w2),
    )
