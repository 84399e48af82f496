"""The edits that sharding is made of: change a tensor with its recipe, find the node that uses it, and put a
collective behind a value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from mm2c.passes.narrow import narrow, repeat
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.recipe import Recipe

DOMAIN = "mm2c"
_WEIGHT_PREPARATION = frozenset({"Cast", "Transpose", "Identity"})


class PassError(RuntimeError):
    """A graph is not what a pass requires, or not what it promises: a defect of the compiler."""


def nodes_of(graph: RankGraph, op_type: str) -> Iterator[ir.Node]:
    """The dialect's nodes of one type, in graph order; safe against edits while iterating."""
    return iter([n for n in graph.model.graph if n.op_type == op_type and n.domain == DOMAIN])


def initializer(graph: RankGraph, name: str) -> ir.Value:
    """The initializer of that name. Raises PassError if the graph has none."""
    value = graph.model.graph.initializers.get(name)
    if value is None:
        raise PassError(f"the graph has no tensor {name!r}")
    return value


def name_of(value: ir.Value | None) -> str:
    """The value's name. Raises PassError for an absent or unnamed value: the dialect has neither."""
    if value is None or value.name is None:
        raise PassError(f"value {value!r} has no name")
    return value.name


def present(value: ir.Value | None) -> ir.Value:
    """The value itself. Raises PassError where it is absent: the dialect has no optional inputs."""
    if value is None:
        raise PassError("a node of the dialect lacks an input")
    return value


def shape_of(graph: RankGraph, name: str) -> tuple[int, ...]:
    """Static shape of a tensor, from its recipe."""
    return graph.recipes[name].shape


def set_recipe(graph: RankGraph, name: str, recipe: Recipe) -> None:
    """Give a tensor new contents; its declared shape follows, its dtype must stay."""
    value = initializer(graph, name)
    if recipe.dtype != graph.recipes[name].dtype:
        raise PassError(f"{name}: {graph.recipes[name].dtype} would become {recipe.dtype}")
    graph.recipes[name] = recipe
    value.shape = ir.Shape(recipe.shape)


def narrow_tensor(graph: RankGraph, name: str, axis: int, start: int, stop: int) -> None:
    """Keep the entries [start, stop) of a tensor along ``axis``, in graph and recipe."""
    set_recipe(graph, name, narrow(graph.recipes[name], axis, start, stop))


def whole_block(block: int, width: int, size: int) -> int:
    """The largest side that scale blocks of side ``block`` can be divided into, so that parts of ``width`` of an
    axis of ``size`` are whole blocks each."""
    return block if width == size else math.gcd(block, width)


def narrow_scales(recipe: Recipe, axis: int, start: int, stop: int, size: int, block: int) -> Recipe:
    """The scales of elements [start, stop) of an axis of ``size``, in blocks of side ``whole_block``.

    A block that is divided gives its scale to each of its parts: dequantised weights stay the same bits.

    Raises:
        PassError: ``start`` is no multiple of the width.
    """
    if (start, stop) == (0, size):
        return recipe
    side = whole_block(block, stop - start, size)
    if start % side:
        raise PassError(f"elements [{start}, {stop}) of {size} cut a scale block of {side}")
    return narrow(repeat(recipe, axis, block // side), axis, start // side, stop // side)


def consumer_of(graph: RankGraph, name: str) -> ir.Node:
    """The node that computes with a tensor, looking through casts and transposes of it.

    Raises:
        PassError: unless there is exactly one.
    """
    value = initializer(graph, name)
    while True:
        users = value.consumers()
        if len(users) != 1:
            raise PassError(f"{name} is used by {len(users)} nodes, not by one")
        node = users[0]
        if node.op_type not in _WEIGHT_PREPARATION:
            return node
        value = node.outputs[0]


def collective_after(
    graph: RankGraph,
    value: ir.Value,
    name: str,
    operation: str,
    groups: Sequence[Sequence[int]],
    *,
    axis: int = -1,
) -> ir.Value:
    """Put a DistCollective behind ``value``, over ``groups`` that hold every rank once; returns its output.

    Every user of ``value``, and the graph's output if it is one, reads the collective's output instead.
    ``operation`` is "all_reduce" (sum), "all_gather" (concatenation along ``axis``) or "reduce_scatter" (the sum,
    cut along ``axis`` over the ranks of a group).
    """
    ranks = [rank for group in groups for rank in group]
    producer = value.producer()
    if producer is None:
        raise PassError(f"{value.name} has no producer to put {operation} behind")
    node = ir.node(
        "DistCollective",
        [value],
        domain=DOMAIN,
        name=f"{name}.{operation}",
        attributes={
            "collective_operation": operation,
            "reduce_op": "sum",
            "root": -1,
            "nb_rank": len(ranks),
            "groups": ranks,
            "group_size": len(groups[0]),
            "axis": axis,
        },
    )
    output = node.outputs[0]
    output.type = value.type
    output.shape = value.shape if operation == "all_reduce" else None
    redirect(graph, value, output, f"{name}.{operation}")
    graph.model.graph.insert_after(producer, node)
    return output


def redirect(graph: RankGraph, value: ir.Value, replacement: ir.Value, name: str) -> None:
    """Make every user of ``value`` read ``replacement``, named ``name``. A graph output keeps its own name:
    then ``replacement`` takes it and ``value`` becomes ``<name>.input``."""
    users = [(use.node, use.idx) for use in value.uses() if use.node is not replacement.producer()]
    for node, index in users:
        node.replace_input_with(index, replacement)
    replacement.name = name
    outputs = graph.model.graph.outputs
    for i, output in enumerate(outputs):
        if output is value:
            replacement.name, value.name = value.name, f"{name}.input"
            outputs[i] = replacement


def integers(graph: RankGraph, name: str, data: int | Sequence[int]) -> ir.Value:
    """A small int64 constant, shared by name, held in the graph itself (it has no recipe)."""
    known = graph.model.graph.initializers.get(name)
    if known is not None:
        return known
    import numpy as np

    tensor = ir.tensor(np.asarray(data, dtype=np.int64), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.model.graph.register_initializer(value)
    return value


def clear_intermediate_shapes(model: ir.Model) -> None:
    """Forget the shapes of everything between inputs and outputs: after a change of widths they are stale,
    and ONNX Runtime refuses a graph whose declared shapes disagree with inference."""
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in outputs:
                value.shape = None
