"""One rank's graph from the whole graph: the sharding passes in order."""

from __future__ import annotations

from mm2c.collectives import plan_collectives
from mm2c.config import Mapping, ModelConfig
from mm2c.passes.edit import PassError, clear_intermediate_shapes, nodes_of
from mm2c.passes.legality import check_mapping
from mm2c.passes.shard_experts import shard_experts
from mm2c.passes.shard_heads import shard_heads
from mm2c.passes.shard_vocabulary import shard_vocabulary
from mm2c.weights.rank_graph import RankGraph


def shard(graph: RankGraph, config: ModelConfig, mapping: Mapping) -> RankGraph:
    """The graph of ``mapping.rank``; ``graph`` is left as it is, and returned itself where that is the only rank.

    Names of tensors, values and collectives are the same on every rank. Ensures the collectives of
    ``plan_collectives`` and no other.

    Raises:
        UserError: the mapping is not legal for this model.
    """
    check_mapping(config, mapping)
    if mapping.ranks == 1:
        return graph
    own = RankGraph(graph.model.clone(), dict(graph.recipes))
    for cut in (shard_heads, shard_experts, shard_vocabulary) if mapping.tp > 1 else (shard_experts,):
        own = cut(own, config, mapping)
    clear_intermediate_shapes(own.model)
    own.model.opset_imports["mm2c"] = 1
    _ensure(own, config, mapping)
    return own


def _ensure(graph: RankGraph, config: ModelConfig, mapping: Mapping) -> None:
    found = [
        (
            str(node.name),
            node.attributes["collective_operation"].as_string(),
            node.attributes["group_size"].as_int(),
        )
        for node in nodes_of(graph, "DistCollective")
    ]
    planned = [
        (message.name, message.kind, message.group_size)
        for message in plan_collectives(config, mapping, tokens=1, rows=1, itemsize=1)
    ]
    if found != planned:
        unlike = sorted(set(found) ^ set(planned)) or "their order"
        raise PassError(f"{len(found)} collectives, {len(planned)} planned; they differ in {unlike}")
    for name, recipe in graph.recipes.items():
        value = graph.model.graph.initializers.get(name)
        if value is not None and value.shape is not None and tuple(value.shape) != recipe.shape:
            raise PassError(f"{name}: the graph declares {value.shape}, the recipe gives {recipe.shape}")
