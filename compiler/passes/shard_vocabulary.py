"""Cut the vocabulary: embedding rows and head rows over the tensor-parallel ranks."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.config import Mapping, ModelConfig
from mm2c.passes.edit import (
    PassError,
    collective_after,
    consumer_of,
    integers,
    redirect,
    set_recipe,
)
from mm2c.passes.narrow import narrow
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.recipe import Pad, Recipe

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def shard_vocabulary(graph: RankGraph, config: ModelConfig, mapping: Mapping) -> RankGraph:
    """Keep this rank's rows [r·n, (r+1)·n) of the vocabulary, n = ⌈V / tp⌉, r its place in its attention group;
    missing rows are zero.

    Rewrite rules:
      1. Gather(embedding, ids) -> Where(own, Gather(rows, Where(own, ids - r·n, 0)), 0), all_reduce behind it
         (behind the cast of the gathered rows, if they are cast)
      2. lm_head: the rows; all_gather of the logits along the last axis
      3. where tp does not divide V: logits of missing rows -> -inf, on every rank by the same nodes
      4. the gathered logits -> their first V entries (the rest is padding, or nothing)

    Requires a Gather on axis 0 and a head whose logits are used as they are. Ensures two collectives.
    """
    rows = -(-config.vocab // mapping.tp)
    _shard_embedding(graph, rows, mapping)
    set_recipe(graph, HEAD, _own_rows(graph.recipes[HEAD], rows, mapping))
    logits = consumer_of(graph, HEAD).outputs[0]
    whole = logits.shape  # before the cut: also what the graph returns after it
    if config.vocab % mapping.tp:
        start = mapping.tp_rank * rows
        logits = _pad_logits(graph, logits, min(rows, config.vocab - start), rows)
    gathered = collective_after(graph, logits, "lm_head", "all_gather", mapping.tp_groups, axis=-1)
    _keep_vocabulary(graph, gathered, config.vocab, whole)
    return graph


def _own_rows(recipe: Recipe, rows: int, mapping: Mapping) -> Recipe:
    vocab = recipe.shape[0]
    start, stop = mapping.tp_rank * rows, min((mapping.tp_rank + 1) * rows, vocab)
    if start >= vocab:
        raise PassError(f"rank {mapping.tp_rank} of {mapping.tp} has no row of a vocabulary of {vocab}")
    own = narrow(recipe, 0, start, stop)
    return own if stop - start == rows else Pad(own, 0, rows)


def _shard_embedding(graph: RankGraph, rows: int, mapping: Mapping) -> None:
    set_recipe(graph, EMBEDDING, _own_rows(graph.recipes[EMBEDDING], rows, mapping))
    gather = consumer_of(graph, EMBEDDING)
    axis = gather.attributes.get("axis")
    ids = gather.inputs[1]
    if gather.op_type != "Gather" or ids is None or (axis is not None and axis.as_int() != 0):
        raise PassError(f"{EMBEDDING} is not read by a Gather on axis 0 but by {gather.op_type}")

    zero = integers(graph, "vocabulary.zero", 0)
    local = _before(
        graph, gather, "Sub", [ids, integers(graph, "vocabulary.first", mapping.tp_rank * rows)], "local"
    )
    low = _before(graph, gather, "GreaterOrEqual", [local, zero], "not_below")
    high = _before(graph, gather, "Less", [local, integers(graph, "vocabulary.rows", rows)], "not_above")
    own = _before(graph, gather, "And", [low, high], "own")
    gather.replace_input_with(1, _before(graph, gather, "Where", [own, local, zero], "row"))
    last = integers(graph, "vocabulary.last_axis", [-1])
    mask = _before(graph, gather, "Unsqueeze", [own, last], "mask")

    embedded = gather.outputs[0]
    users = embedded.consumers()
    if len(users) == 1 and users[0].op_type == "Cast":
        embedded = users[0].outputs[0]
    producer = embedded.producer()
    if producer is None:
        raise PassError(f"{embedded.name} has no producer")
    nothing = ir.node("CastLike", [zero, embedded], name="vocabulary.nothing")
    nothing.outputs[0].name = "vocabulary.nothing"
    masked = ir.node("Where", [mask, embedded, nothing.outputs[0]], name="vocabulary.masked")
    masked.outputs[0].type = embedded.type
    users_of_embedded = [
        (u.node, u.idx) for u in embedded.uses() if u.node is not masked and u.node is not nothing
    ]
    for node, index in users_of_embedded:
        node.replace_input_with(index, masked.outputs[0])
    masked.outputs[0].name = "vocabulary.masked"
    graph.model.graph.insert_after(producer, [nothing, masked])
    collective_after(graph, masked.outputs[0], "model.embed_tokens", "all_reduce", mapping.tp_groups)


def _before(graph: RankGraph, at: ir.Node, op: str, inputs: list[ir.Value], name: str) -> ir.Value:
    node = ir.node(op, inputs, name=f"vocabulary.{name}")
    node.outputs[0].name = f"vocabulary.{name}"
    graph.model.graph.insert_before(at, node)
    return node.outputs[0]


def _pad_logits(graph: RankGraph, logits: ir.Value, own: int, rows: int) -> ir.Value:
    """Logits of the first ``own`` of ``rows`` entries, -inf for the others."""
    import numpy as np

    producer = logits.producer()
    if producer is None:
        raise PassError("the logits have no producer")
    last, begin = integers(graph, "vocabulary.last_axis", [-1]), integers(graph, "vocabulary.begin", [0])
    least = ir.tensor(np.asarray(-np.inf, np.float32), name="vocabulary.least")
    value = ir.Value(name=least.name, shape=ir.Shape([]), type=ir.TensorType(least.dtype), const_value=least)
    graph.model.graph.register_initializer(value)
    stop = integers(graph, "vocabulary.own_rows", [own])
    cut = ir.node("Slice", [logits, begin, stop, last], name="lm_head.own")
    redirect(graph, logits, cut.outputs[0], "lm_head.own")
    like = ir.node("CastLike", [value, logits], name="lm_head.least")
    like.outputs[0].name = "lm_head.least"
    missing = integers(graph, "vocabulary.missing", [0, rows - own])
    pad = ir.node("Pad", [cut.outputs[0], missing, like.outputs[0], last], name="lm_head.padded")
    redirect(graph, cut.outputs[0], pad.outputs[0], "lm_head.padded")
    for node in (cut, like, pad):
        node.outputs[0].type = logits.type
    graph.model.graph.insert_after(producer, [cut, like, pad])
    return pad.outputs[0]


def _keep_vocabulary(graph: RankGraph, gathered: ir.Value, vocab: int, shape: ir.Shape | None) -> None:
    producer = gathered.producer()
    if producer is None:
        raise PassError("the gathered logits have no producer")
    bounds = [
        integers(graph, "vocabulary.begin", [0]),
        integers(graph, "vocabulary.end", [vocab]),
        integers(graph, "vocabulary.last_axis", [-1]),
    ]
    node = ir.node("Slice", [gathered, *bounds], name="lm_head.vocabulary")
    node.outputs[0].type, node.outputs[0].shape = gathered.type, shape
    redirect(graph, gathered, node.outputs[0], "lm_head.vocabulary")
    graph.model.graph.insert_after(producer, node)
