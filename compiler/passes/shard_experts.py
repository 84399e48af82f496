"""Cut the experts: whole experts over groups of ranks (EP), the intermediate width inside a group (TP)."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.config import Mapping, ModelConfig
from mm2c.passes.edit import (
    PassError,
    blocks,
    collective_after,
    name_of,
    narrow_tensor,
    nodes_of,
    set_recipe,
    shape_of,
)
from mm2c.passes.narrow import join, narrow
from mm2c.weights.rank_graph import RankGraph

_OPS = {"M2MoeExpertsFp8": (3, 5), "M2MoeExpertsBf16": (3, 4)}  # op -> inputs that hold w13 and w2


def shard_experts(graph: RankGraph, config: ModelConfig, mapping: Mapping) -> RankGraph:
    """Keep this rank's part of every expert layer. The router is replicated: every rank knows all choices.

    Rewrite rules, per layer, for expert group g = rank // (tp / ep) and slice i = rank % (tp / ep):
      1. gate_up_proj, down_proj and their scales: experts [g·E/ep, (g+1)·E/ep); ``first_expert`` = g·E/ep
      2. gate_up_proj[E, 2I, H]: slice i of the gate rows and slice i of the up rows, joined again
      3. down_proj[E, H, I]: slice i of the columns
      4. scales: the blocks of those slices
      5. all_reduce over all ranks behind the experts' output (a rank adds nothing for experts it lacks)

    Requires ep to divide tp and the experts, and slices of whole scale blocks. Ensures one collective a
    layer.
    """
    if mapping.tp % mapping.ep or config.experts % mapping.ep or config.intermediate % mapping.moe_tp:
        raise PassError(f"{mapping} does not cut {config.experts} experts of width {config.intermediate}")
    layers = 0
    for op, (w13, w2) in _OPS.items():
        for node in nodes_of(graph, op):
            _shard_layer(graph, node, name_of(node.inputs[w13]), name_of(node.inputs[w2]), config, mapping)
            layers += 1
    if layers != config.layers:
        raise PassError(f"{layers} expert nodes in a model of {config.layers} layers")
    return graph


def _shard_layer(
    graph: RankGraph, node: ir.Node, gate_up: str, down: str, config: ModelConfig, mapping: Mapping
) -> None:
    count = config.experts // mapping.ep
    first = mapping.ep_rank * count
    width = config.intermediate // mapping.moe_tp
    start, stop = mapping.moe_tp_rank * width, (mapping.moe_tp_rank + 1) * width

    for name in _with_scale(graph, gate_up) + _with_scale(graph, down):
        narrow_tensor(graph, name, 0, first, first + count)
    _narrow_halves(graph, gate_up, start, stop)
    narrow_tensor(graph, down, 2, start, stop)
    if node.op_type == "M2MoeExpertsFp8":
        size = config.intermediate
        block_n, block_k = node.attributes["block_n"].as_int(), node.attributes["block_k"].as_int()
        if size % block_n and mapping.moe_tp > 1:
            raise PassError(
                f"gate and up share a scale block of {gate_up}: {size} is not a multiple of {block_n}"
            )
        _narrow_halves(graph, f"{gate_up}_scale_inv", *blocks(start, stop, size, block_n))
        narrow_tensor(graph, f"{down}_scale_inv", 2, *blocks(start, stop, size, block_k))

    node.attributes["first_expert"] = ir.AttrInt64("first_expert", first)
    collective_after(graph, node.outputs[0], gate_up.removesuffix(".gate_up_proj"), "all_reduce", mapping)


def _narrow_halves(graph: RankGraph, name: str, start: int, stop: int) -> None:
    """[E, 2n, …] -> [E, 2(stop - start), …]: the range of the gate half and of the up half."""
    half = shape_of(graph, name)[1] // 2
    recipe = graph.recipes[name]
    gate, up = narrow(recipe, 1, start, stop), narrow(recipe, 1, half + start, half + stop)
    set_recipe(graph, name, join((gate, up), 1))


def _with_scale(graph: RankGraph, name: str) -> list[str]:
    return [n for n in (name, f"{name}_scale_inv") if n in graph.recipes]
