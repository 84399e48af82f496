"""Attention-DP: what the attention groups tell each other around the experts that they share."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mm2c.config import Mapping, ModelConfig
from mm2c.passes.edit import PassError, collective_after, integers, name_of, present
from mm2c.weights.rank_graph import RankGraph

STEP_TOKENS = "step_tokens"  # graph input i64[1]: tokens of every rank in an exchange, the same on all ranks


@dataclass(frozen=True)
class StepTokens:
    """``own`` i64[1]: the rank's tokens T = batch · seq; ``pads`` i64[2]: (0, P - T), P being ``step_tokens``."""

    own: ir.Value
    pads: ir.Value


def step_tokens(graph: RankGraph, config: ModelConfig) -> StepTokens:
    """Add the graph input ``step_tokens`` behind the lengths, and what every layer needs to know of it."""
    inputs = graph.model.graph.inputs
    names = [name_of(value) for value in inputs[:3]]
    if names != ["input_ids", "past_len", "new_len"]:
        raise PassError(f"the graph's inputs begin with {names}")
    kind = ir.TensorType(ir.DataType.INT64)
    tokens = ir.Value(name=STEP_TOKENS, shape=ir.Shape([1]), type=kind)
    inputs.insert(3, tokens)
    first = next(iter(graph.model.graph))

    def before(op: str, given: list[ir.Value], name: str, **attributes: int) -> ir.Value:
        node = ir.node(op, given, attributes, name=f"exchange.{name}")
        node.outputs[0].name, node.outputs[0].type = f"exchange.{name}", kind
        graph.model.graph.insert_before(first, node)
        return node.outputs[0]

    rows = before("Shape", [inputs[0]], "rows", start=0, end=1)
    width = before("Shape", [inputs[0]], "width", start=1, end=2)
    own = before("Mul", [rows, width], "own")
    more = before("Sub", [tokens, own], "more")
    return StepTokens(own, before("Concat", [integers(graph, "exchange.none", [0]), more], "pads", axis=0))


def exchange_tokens(
    graph: RankGraph, experts: ir.Node, module: str, step: StepTokens, mapping: Mapping
) -> ir.Value:
    """Let the experts see the tokens of all groups, and every group get its own back.

    Rewrite rules, x[T, H] being what router and experts read and y[T, H] the experts' output:
      1. x -> all_gather(Pad(x, [P, H])) over the ranks of equal place in their groups: [A·P, H]
      2. y[A·P, H] -> reduce_scatter over the same ranks: [P, H], the sum over their experts
      3. users of y -> its first T rows

    Returns the [T, H] of rule 3, whose sum over the group is still to be made if it has several ranks: of what a
    group has, not of the P that all have. Requires that the router reads the same x.
    """
    x = present(experts.inputs[0])
    producer = x.producer()
    if producer is None or not _router_reads(experts, x):
        raise PassError(f"{experts.name}: router and experts do not read one value")
    axis = integers(graph, "exchange.axis", [0])
    padded = ir.node("Pad", [x, step.pads, None, axis], name=f"{module}.padded_tokens")
    _behind(graph, x, padded)
    collective_after(graph, padded.outputs[0], f"{module}.tokens", "all_gather", mapping.token_groups, axis=0)
    y = experts.outputs[0]
    begin = integers(graph, "exchange.none", [0])
    own = ir.node("Slice", [y, begin, step.own, axis], name=f"{module}.own_tokens")
    _behind(graph, y, own)
    collective_after(graph, y, module, "reduce_scatter", mapping.token_groups, axis=0)
    return own.outputs[0]


def _behind(graph: RankGraph, value: ir.Value, node: ir.Node) -> None:
    """Put a node that reads ``value`` in front of all its other users."""
    made = node.outputs[0]
    made.name, made.type = node.name, value.type
    for use in [use for use in value.uses() if use.node is not node]:
        use.node.replace_input_with(use.idx, made)
    producer = value.producer()
    assert producer is not None
    graph.model.graph.insert_after(producer, node)


def _router_reads(experts: ir.Node, x: ir.Value) -> bool:
    """Whether the choice of experts comes from ``x`` alone, by nodes that treat every token by itself."""
    routing = present(experts.inputs[1]).producer()
    value: ir.Value | None = routing.inputs[0] if routing is not None and routing.inputs else None
    while value is not None and value is not x:
        node = value.producer()
        if node is None or node.op_type not in ("Cast", "MatMul"):
            return False
        value = node.inputs[0]
    return value is x
