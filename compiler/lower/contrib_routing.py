"""Fast lowering, step 4a: what com.microsoft.MoE needs to know of the router's choice."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mm2c.lower.writer import Writer
from mm2c.passes.edit import name_of
from mm2c_runtime.weights.recipe import Recipe

_UNCHOSEN = -1e30  # log score of an expert that was not chosen


@dataclass(frozen=True)
class Routes:
    """``logs`` [..., local]: log scores of the local experts, -1e30 where not chosen; at most ``top_k`` are.

    ``sums``: Σ chosen scores over the local experts and over all, both [..., 1]; None where all are local.
    """

    logs: ir.Value
    top_k: int
    sums: tuple[ir.Value, ir.Value] | None


def route(writer: Writer, node: ir.Node, recipes: dict[str, Recipe], first: int, local: int) -> Routes:
    """Lower M2MoeRouting for the experts [first, first + local).

    The operator chooses top-k of what it is given and weighs by their softmax. softmax(log s) = s / Σ s, so
    it reproduces sigmoid routing when it is given log s of the chosen experts and next to -inf for the
    others, whose weight is then exactly 0 and which it skips.
    """
    logits, bias = node.inputs
    experts = recipes[name_of(bias)].shape[0]
    top_k = node.attributes["top_k"].as_int()
    score = writer.one("Sigmoid", [logits], "score")
    biased = writer.one("Add", [score, bias], "biased")
    count = writer.constant("top_k", [top_k])
    _, ids = writer.emit("TopK", [biased, count], "choice", outputs=2, axis=-1, largest=1, sorted=1)
    ids.type = ir.TensorType(ir.DataType.INT64)
    chosen = writer.one("GatherElements", [score, ids], "chosen", axis=-1)
    floor = writer.constant("unchosen", _UNCHOSEN)
    if local == experts:
        # Clip with equal bounds fills a tensor of the scores' shape in one step
        empty = writer.one("Clip", [score, floor, floor], "empty")
        log = writer.one("Log", [chosen], "log")
        return Routes(writer.one("ScatterElements", [empty, ids, log], "logs", axis=-1), top_k, None)
    zero = writer.constant("zero", 0.0)
    empty = writer.one("Clip", [score, zero, zero], "empty")
    spread = writer.one("ScatterElements", [empty, ids, chosen], "spread", axis=-1)
    axis = writer.constant("last_axis", [-1])
    bounds = [writer.constant(f"at_{i}", [i]) for i in (first, first + local)]
    own = writer.one("Slice", [spread, *bounds, axis], "own")
    logs = writer.one("Clip", [writer.one("Log", [own], "log"), floor], "logs")
    of_own = writer.one("ReduceSum", [own, axis], "of_own", keepdims=1)
    of_all = writer.one("ReduceSum", [chosen, axis], "of_all", keepdims=1)
    return Routes(logs, min(top_k, local), (of_own, of_all))
