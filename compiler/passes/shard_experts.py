"""Cut the experts: whole experts over groups of ranks (EP), the intermediate width inside a group (TP)."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.config import Mapping, ModelConfig
from mm2c.passes.edit import (
    PassError,
    collective_after,
    name_of,
    narrow_scales,
    narrow_tensor,
    nodes_of,
    set_recipe,
    shape_of,
    whole_block,
)
from mm2c.passes.exchange_tokens import exchange_tokens, step_tokens
from mm2c.passes.narrow import join, narrow
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.recipe import Recipe

_OPS = {"M2MoeExpertsFp8": (3, 5), "M2MoeExpertsBf16": (3, 4)}  # op -> inputs that hold w13 and w2


def shard_experts(graph: RankGraph, config: ModelConfig, mapping: Mapping) -> RankGraph:
    """Keep this rank's part of every expert layer. The router is replicated: every rank knows all choices.

    Rewrite rules, per layer, for expert group g = rank // moe_tp and slice i = rank % moe_tp:
      1. gate_up_proj, down_proj and their scales: experts [g·E/ep, (g+1)·E/ep); ``first_expert`` = g·E/ep
      2. gate_up_proj[E, 2I, H]: slice i of the gate rows and slice i of the up rows, joined again
      3. down_proj[E, H, I]: slice i of the columns
      4. scales: the blocks of those slices; blocks that a slice divides become smaller ones, ``block_n``, each
         with the scale of the one it was part of
      5. all_reduce over the attention group behind the experts' output (a rank adds nothing for experts it lacks)
      6. attention-DP: the groups exchange their tokens in front and behind, see ``exchange_tokens``

    Requires ep to divide the experts and moe_tp their intermediate width.
    """
    if config.experts % mapping.ep or config.intermediate % mapping.moe_tp:
        raise PassError(f"{mapping} does not cut {config.experts} experts of width {config.intermediate}")
    exchange = step_tokens(graph, config) if mapping.attention_dp > 1 else None
    layers = 0
    for op, (w13, w2) in _OPS.items():
        for node in nodes_of(graph, op):
            gate_up, down = name_of(node.inputs[w13]), name_of(node.inputs[w2])
            _shard_layer(graph, node, gate_up, down, config, mapping)
            result, module = node.outputs[0], gate_up.removesuffix(".gate_up_proj")
            if exchange is not None:
                result = exchange_tokens(graph, node, module, exchange, mapping)
            if mapping.tp > 1:
                collective_after(graph, result, module, "all_reduce", mapping.tp_groups)
            layers += 1
    if layers != config.layers:
        raise PassError(f"{layers} expert nodes in a model of {config.layers} layers")
    return graph


def _shard_layer(
    graph: RankGraph, node: ir.Node, gate_up: str, down: str, config: ModelConfig, mapping: Mapping
) -> None:
    count = config.experts // mapping.ep
    first = mapping.ep_rank * count
    size = config.intermediate
    width = size // mapping.moe_tp
    start, stop = mapping.moe_tp_rank * width, (mapping.moe_tp_rank + 1) * width

    for name in _with_scale(graph, gate_up) + _with_scale(graph, down):
        narrow_tensor(graph, name, 0, first, first + count)
    halves = [narrow(half, 1, start, stop) for half in _halves(graph, gate_up)]
    set_recipe(graph, gate_up, join(tuple(halves), 1))
    narrow_tensor(graph, down, 2, start, stop)
    if node.op_type == "M2MoeExpertsFp8":
        block = node.attributes["block_n"].as_int()
        name = f"{gate_up}_scale_inv"
        halves = [narrow_scales(half, 1, start, stop, size, block) for half in _halves(graph, name)]
        set_recipe(graph, name, join(tuple(halves), 1))
        name = f"{down}_scale_inv"
        set_recipe(graph, name, narrow_scales(graph.recipes[name], 2, start, stop, size, block))
        node.attributes["block_n"] = ir.AttrInt64("block_n", whole_block(block, width, size))
    node.attributes["first_expert"] = ir.AttrInt64("first_expert", first)


def _halves(graph: RankGraph, name: str) -> list[Recipe]:
    """Of [E, 2n, …]: gate and up, each [E, n, …]."""
    half = shape_of(graph, name)[1] // 2
    recipe = graph.recipes[name]
    return [narrow(recipe, 1, 0, half), narrow(recipe, 1, half, 2 * half)]


def _with_scale(graph: RankGraph, name: str) -> list[str]:
    return [n for n in (name, f"{name}_scale_inv") if n in graph.recipes]
