"""Cut attention by heads over the tensor-parallel ranks."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.config import Mapping, ModelConfig
from mm2c.passes.edit import (
    PassError,
    collective_after,
    consumer_of,
    name_of,
    narrow_scales,
    narrow_tensor,
    nodes_of,
    set_recipe,
    shape_of,
    whole_block,
)
from mm2c.weights.rank_graph import RankGraph


def shard_heads(graph: RankGraph, config: ModelConfig, mapping: Mapping) -> RankGraph:
    """Keep this rank's query and KV heads.

    Rewrite rules, per layer:
      1. q_proj, k_proj, v_proj: rows of the rank's heads (and the block scales of those rows)
      2. q_norm, k_norm: the same entries of the weight; ``q_total``/``k_total`` stay the GLOBAL widths,
         because the norm runs over all heads
      3. M2Attention: ``heads`` and ``kv_heads`` become the rank's; cache inputs and outputs likewise
      4. the two sums of squares s[B, S, 2] -> ONE all_reduce message
      5. o_proj: columns of the rank's query heads, all_reduce behind it
      6. fewer KV heads than ranks: tp / kv_heads ranks hold each of them. The sum over ranks then counts every
         head that often, and ``k_total`` is what it counted: tp / kv_heads times the width
      7. FP8 blocks that the cut divides: smaller blocks, each with the scale of the one it was part of

    Requires heads divisible by tp, and kv_heads by tp or tp by kv_heads. Ensures two collectives a layer over
    each attention group.
    """
    tp, rank = mapping.tp, mapping.tp_rank
    if config.heads % tp or (config.kv_heads % tp and tp % config.kv_heads):
        raise PassError(f"tp {tp} does not cut {config.heads} heads and {config.kv_heads} KV heads")
    q = config.q_width // tp
    kv = mapping.kv_heads_of_rank(config.kv_heads) * config.head_dim
    own_kv = rank * config.kv_heads // tp * config.head_dim
    attentions = list(nodes_of(graph, "M2Attention"))
    if len(attentions) != config.layers:
        raise PassError(f"{len(attentions)} M2Attention nodes in a model of {config.layers} layers")
    for node in attentions:
        layer = int(name_of(node.inputs[10]).rsplit(".", 1)[1])
        module = f"model.layers.{layer}.self_attn"
        for name, first, width in (("q", rank * q, q), ("k", own_kv, kv), ("v", own_kv, kv)):
            narrow_linear(graph, f"{module}.{name}_proj", 0, first, first + width)
        narrow_linear(graph, f"{module}.o_proj", 1, rank * q, (rank + 1) * q)
        narrow_tensor(graph, f"{module}.q_norm.weight", 0, rank * q, (rank + 1) * q)
        narrow_tensor(graph, f"{module}.k_norm.weight", 0, own_kv, own_kv + kv)
        _narrow_attention(node, config, mapping)
        sums = node.inputs[3]
        if sums is None:
            raise PassError(f"{node.name} has no sums of squares")
        collective_after(graph, sums, f"{module}.qk_sums", "all_reduce", mapping.tp_groups)
        projected = consumer_of(graph, f"{module}.o_proj.weight").outputs[0]
        collective_after(graph, projected, f"{module}.o_proj", "all_reduce", mapping.tp_groups)
    return graph


def narrow_linear(graph: RankGraph, module: str, axis: int, start: int, stop: int) -> None:
    """Keep rows (axis 0) or columns (axis 1) [start, stop) of a linear's weight, and of its block scales."""
    weight, scale = f"{module}.weight", f"{module}.weight_scale_inv"
    size = shape_of(graph, weight)[axis]
    narrow_tensor(graph, weight, axis, start, stop)
    if scale in graph.recipes:
        node = consumer_of(graph, scale)
        side = "block_n" if axis == 0 else "block_k"
        block = node.attributes[side].as_int()
        set_recipe(graph, scale, narrow_scales(graph.recipes[scale], axis, start, stop, size, block))
        node.attributes[side] = ir.AttrInt64(side, whole_block(block, stop - start, size))


def _narrow_attention(node: ir.Node, config: ModelConfig, mapping: Mapping) -> None:
    if (node.attributes["q_total"].as_int(), node.attributes["k_total"].as_int()) != (
        config.q_width,
        config.kv_width,
    ):
        raise PassError(f"{node.name}: the norm's divisors are not the model's widths")
    kv_heads = mapping.kv_heads_of_rank(config.kv_heads)
    counted = kv_heads * mapping.tp * config.head_dim
    node.attributes["heads"] = ir.AttrInt64("heads", config.heads // mapping.tp)
    node.attributes["kv_heads"] = ir.AttrInt64("kv_heads", kv_heads)
    node.attributes["k_total"] = ir.AttrInt64("k_total", counted)
    for cache in (*node.inputs[10:12], *node.outputs[1:3]):
        if cache is None or cache.shape is None:
            raise PassError(f"{node.name}: a cache has no declared shape")
        batch, _, length, width = cache.shape
        cache.shape = ir.Shape([batch, kv_heads, length, width])
