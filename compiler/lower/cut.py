"""Cutting a lowered rank at its collectives, into segments that ONNX Runtime runs one after the other."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from mm2c.lower.program import LoweredRank, Program
from mm2c.passes.edit import name_of
from mm2c_runtime.manifest import Collective


def cut(lowered: LoweredRank) -> Program:
    """The segments and collectives of a lowered rank; ``lowered`` is left as it is. No collective: one
    segment.

    Rules:
      1. a node belongs to the segment between the collectives it stands between in the graph's order
      2. a node made of tensors and constants alone is repeated in every segment that reads it, so that no
         weight travels between segments
      3. a segment's inputs are the graph's inputs, collectives' outputs and earlier segments' values that it
         reads; its outputs are the graph's outputs, its collective's input and the values later segments
         read; in order of first use and of production, hence the same on every rank
    """
    nodes = list(lowered.model.graph)
    static = _static_nodes(nodes, lowered.model.graph)
    groups: list[list[ir.Node]] = [[]]
    collectives: list[ir.Node] = []
    for node in nodes:
        if node.op_type == "DistCollective":
            collectives.append(node)
            groups.append([])
        elif node not in static:
            groups[-1].append(node)
    groups = [_with_static(group, static, nodes) for group in groups]

    reads = [_reads(group) for group in groups]
    segments = []
    for i, group in enumerate(groups):
        wanted = {id(value) for value in lowered.model.graph.outputs}
        wanted |= {id(value) for later in reads[i + 1 :] for value in later}
        wanted |= {id(value) for node in collectives[i:] for value in node.inputs}
        segments.append(_segment(lowered, i, group, reads[i], wanted, static))
    kept = {name for segment in segments for name in segment.graph.initializers}
    return Program(
        segments,
        [_record(node) for node in collectives],
        {name: recipe for name, recipe in lowered.recipes.items() if name in kept},
        lowered.in_place,
        lowered.padded,
    )


def _static_nodes(nodes: list[ir.Node], graph: ir.Graph) -> set[ir.Node]:
    """Nodes that depend on no graph input."""
    fixed = {id(value) for value in graph.initializers.values()}
    static: set[ir.Node] = set()
    outputs = {id(value) for value in graph.outputs}
    for node in nodes:
        free = node.op_type != "DistCollective" and all(v is None or id(v) in fixed for v in _inputs(node))
        if free and not any(id(value) in outputs for value in node.outputs):
            static.add(node)
            fixed |= {id(value) for value in node.outputs}
    return static


def _with_static(group: list[ir.Node], static: set[ir.Node], nodes: list[ir.Node]) -> list[ir.Node]:
    needed: set[ir.Node] = set()
    pending = list(group)
    while pending:
        for value in _inputs(pending.pop()):
            producer = value.producer() if value is not None else None
            if producer in static and producer not in needed:
                needed.add(producer)
                pending.append(producer)
    if not needed:
        return group
    members = needed | set(group)
    return [node for node in nodes if node in members]


def _inputs(node: ir.Node) -> Iterable[ir.Value | None]:
    """What a node reads, its subgraphs included."""
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from (
                    value for value in _inputs(inner) if value is not None and value.graph is node.graph
                )


def _reads(group: list[ir.Node]) -> list[ir.Value]:
    """Values that a group reads and does not make, in order of first use."""
    made = {id(value) for node in group for value in node.outputs}
    found: dict[int, ir.Value] = {}
    for node in group:
        for value in _inputs(node):
            if value is not None and id(value) not in made:
                found.setdefault(id(value), value)
    return list(found.values())


def _segment(
    lowered: LoweredRank,
    index: int,
    group: list[ir.Node],
    reads: list[ir.Value],
    wanted: set[int],
    static: set[ir.Node],
) -> ir.Model:
    source = lowered.model.graph
    values: dict[int, ir.Value] = {}
    inputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    for value in reads:
        copy = ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)
        values[id(value)] = copy
        (initializers if value.is_initializer() else inputs).append(copy)
    nodes: list[ir.Node] = []
    outputs: list[ir.Value] = []
    for node in group:
        twin = _copy(node, values)
        nodes.append(twin)
        if node not in static:
            outputs.extend(values[id(v)] for v in node.outputs if id(v) in wanted)
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports=dict(source.opset_imports),
        name=f"segment_{index}",
    )
    domains = {(node.domain, node.op_type) for node in group}
    functions = [f.clone() for f in lowered.model.functions.values() if (f.domain, f.name) in domains]
    return ir.Model(graph, ir_version=lowered.model.ir_version, producer_name="mm2c", functions=functions)


def _copy(node: ir.Node, values: dict[int, ir.Value]) -> ir.Node:
    outputs = []
    for value in node.outputs:
        copy = ir.Value(name=value.name, shape=value.shape, type=value.type)
        values[id(value)] = copy
        outputs.append(copy)
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            raise ValueError(f"{node.name}: a node with a subgraph is not cut; put it into a function body")
    return ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else values[id(value)] for value in node.inputs],
        list(node.attributes.values()),
        overload=node.overload,
        outputs=outputs,
        name=node.name,
    )


def _record(node: ir.Node) -> Collective:
    (source,), (target,) = node.inputs, node.outputs
    flat, size = list(node.attributes["groups"].as_ints()), node.attributes["group_size"].as_int()
    return Collective.model_validate(
        {
            "kind": node.attributes["collective_operation"].as_string(),
            "input": name_of(source),
            "output": name_of(target),
            "axis": node.attributes["axis"].as_int(),
            "groups": [flat[i : i + size] for i in range(0, len(flat), size)],
        }
    )
