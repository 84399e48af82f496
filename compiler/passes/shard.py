"""One rank's graph from the whole graph: the sharding passes in order."""

from __future__ import annotations

from mm2c.config import Mapping, ModelConfig
from mm2c.passes.edit import PassError, clear_intermediate_shapes, nodes_of
from mm2c.passes.legality import check_mapping, stored_formats
from mm2c.passes.shard_experts import shard_experts
from mm2c.passes.shard_heads import shard_heads
from mm2c.passes.shard_vocabulary import shard_vocabulary
from mm2c.weights.rank_graph import RankGraph


def shard(graph: RankGraph, config: ModelConfig, mapping: Mapping) -> RankGraph:
    """The graph of ``mapping.rank``; ``graph`` is left as it is, and returned itself when tp is 1.

    Names of tensors, values and collectives are the same on every rank. Ensures three all_reduces a layer,
    one behind the embedding, and one all_gather behind the head.

    Raises:
        UserError: the mapping is not legal for this model.
    """
    check_mapping(config, stored_formats(graph), mapping)
    if mapping.tp == 1:
        return graph
    own = RankGraph(graph.model.clone(), dict(graph.recipes))
    for cut in (shard_heads, shard_experts, shard_vocabulary):
        own = cut(own, config, mapping)
    clear_intermediate_shapes(own.model)
    own.model.opset_imports["mm2c"] = 1
    _ensure(own, config)
    return own


def _ensure(graph: RankGraph, config: ModelConfig) -> None:
    kinds = [n.attributes["collective_operation"].as_string() for n in nodes_of(graph, "DistCollective")]
    expected = 3 * config.layers + 1
    if kinds.count("all_reduce") != expected or kinds.count("all_gather") != 1:
        raise PassError(
            f"{kinds.count('all_reduce')} all_reduces and {kinds.count('all_gather')} all_gathers, "
            f"where {expected} and 1 were expected"
        )
    for name, recipe in graph.recipes.items():
        value = graph.model.graph.initializers.get(name)
        if value is not None and value.shape is not None and tuple(value.shape) != recipe.shape:
            raise PassError(f"{name}: the graph declares {value.shape}, the recipe gives {recipe.shape}")
