"""A rank's graph as a sequence of stages of a few decoder layers each, named so that equal stages have equal graphs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.passes.edit import PassError, name_of

_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)(?=[./])")
_CACHE = re.compile(r"^([kv]_cache(?:_out)?)\.(\d+)$")
_STEP = ("input_ids", "past_len", "new_len", "block_table")


@dataclass
class StageGraph:
    """Layers ``first_layer`` … ``first_layer + layers - 1``, the first stage's with the embedding before them, the last
    one's with the head behind them. Names count layers from 0.

    ``weights`` are the model's names of the tensors that it reads, in the order of its inputs."""

    model: ir.Model
    first_layer: int
    layers: int
    weights: list[str]


def cut_stages(rank: LoweredRank, layers_per_stage: int) -> list[StageGraph]:
    """The stages in order; ``rank`` is left as it is. ``layers_per_stage`` 0: one stage.

    Why stages: TensorRT-RTX 1.7 takes quadratically long for the layers of one plan (8 of M2's: 4 s, 62: 109 s), its
    parser crashed on 62 layers written out node by node (which function bodies avoid), and equal stages share a plan.

    Rules:
      1. a node belongs to its layer's stage, which its name tells, or the tensors that it reads; one without a layer
         belongs where the last of what it reads is made
      2. nodes made of step inputs and constants alone are repeated in every stage that reads them
      3. what a stage reads of the one before it are the inputs hidden.0, hidden.1 …, outputs hidden_out.0 … there
      4. inputs: those of the step, hidden, caches, then the tensors in order of use, all under names that count layers
         from the stage's first one

    Requires that a stage reads nothing of any stage but the one before it.
    """
    graph = rank.model.graph
    depth = _depth(rank)
    size = layers_per_stage or depth
    count = -(-depth // size)
    repeated = _repeated(rank)
    home = _homes(rank, repeated, size)
    stages = []
    before: list[ir.Value] = []
    for index in range(count):
        members = _members([node for node in graph if home.get(node) == index], repeated, graph)
        after = _crossing(graph, home, index)
        stages.append(
            _stage(
                rank,
                members,
                before,
                after,
                index * size,
                min(size, depth - index * size),
                index == count - 1,
            )
        )
        before = after
    return stages


def _depth(rank: LoweredRank) -> int:
    found = [match for value in rank.model.graph.inputs if (match := _CACHE.match(name_of(value)))]
    if not found:
        raise PassError("the graph has no cache")
    return 1 + max(int(match[2]) for match in found)


def _repeated(rank: LoweredRank) -> set[ir.Node]:
    """Nodes that depend on step inputs and constants alone."""
    graph = rank.model.graph
    known = {id(v) for v in graph.inputs if v.name in _STEP}
    known |= {id(v) for v in graph.initializers.values() if v.const_value is not None}
    found: set[ir.Node] = set()
    for node in graph:
        if all(value is None or id(value) in known for value in node.inputs):
            found.add(node)
            known |= {id(value) for value in node.outputs}
    return found


def _homes(rank: LoweredRank, repeated: set[ir.Node], size: int) -> dict[ir.Node, int]:
    """The stage of every node that is not repeated: that of its layer, but none before what it reads."""
    home: dict[ir.Node, int] = {}
    for node in rank.model.graph:
        if node in repeated:
            continue
        behind = [home[p] for value in node.inputs if value is not None and (p := value.producer()) in home]
        home[node] = max([_layer(node) // size, *behind])
        if behind and min(behind) < home[node] - 1:
            raise PassError(f"{node.name} of stage {home[node]} reads what stage {min(behind)} made")
    return home


def _layer(node: ir.Node) -> int:
    """The layer that a node's name tells, or the tensors and caches that it reads; 0 where nothing does."""
    names = [node.name or ""]
    names += [value.name or "" for value in node.inputs if value is not None and value.producer() is None]
    found = [match for name in names if (match := _LAYER.search(name) or _CACHE.match(name))]
    return max((int(match[match.lastindex or 1]) for match in found), default=0)


def _members(own: list[ir.Node], repeated: set[ir.Node], graph: ir.Graph) -> list[ir.Node]:
    needed = set(own)
    pending = list(own)
    while pending:
        for value in pending.pop().inputs:
            producer = value.producer() if value is not None else None
            if producer in repeated and producer not in needed:
                needed.add(producer)
                pending.append(producer)
    return [node for node in graph if node in needed]


def _crossing(graph: ir.Graph, home: dict[ir.Node, int], index: int) -> list[ir.Value]:
    """Values of stage ``index`` that later ones read, in order of production."""
    found = []
    for node in graph:
        if home.get(node) != index:
            continue
        for value in node.outputs:
            if any(home.get(user, index) > index for user in value.consumers()):
                found.append(value)
    return found


def _stage(
    rank: LoweredRank,
    nodes: list[ir.Node],
    before: list[ir.Value],
    after: list[ir.Value],
    first: int,
    layers: int,
    last: bool,
) -> StageGraph:
    source = rank.model.graph
    values: dict[int, ir.Value] = {}
    inputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    weights: list[ir.Value] = []
    read = list(_reads(nodes))

    def add(value: ir.Value, name: str) -> ir.Value:
        copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
        values[id(value)] = copy
        return copy

    for value in source.inputs:  # a cache belongs to its layer; of the step, what is read
        cache = _CACHE.match(name_of(value))
        if cache is not None and not first <= int(cache[2]) < first + layers:
            continue
        if cache is not None or value in read:
            inputs.append(add(value, _local(name_of(value), first)))
    place = sum(_CACHE.match(name_of(v)) is None for v in inputs)
    inputs[place:place] = [add(value, f"hidden.{i}") for i, value in enumerate(before)]
    for value in read:
        if id(value) in values:
            continue
        if not value.is_initializer():
            raise PassError(f"stage of layer {first} reads {value.name}, which no stage before it hands on")
        if value.const_value is None:
            weights.append(value)
            inputs.append(add(value, _local(name_of(value), first)))
        else:
            initializers.append(add(value, _local(name_of(value), first)))
    made = [_copied(node, values, first) for node in nodes]
    outputs = []
    for i, value in enumerate(after):
        values[id(value)].name = f"hidden_out.{i}"
        outputs.append(values[id(value)])
    for value in source.outputs:
        cache = _CACHE.match(name_of(value))
        if (cache is None and last) or (cache is not None and first <= int(cache[2]) < first + layers):
            outputs.append(values[id(value)])
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=made,
        initializers=initializers,
        opset_imports=dict(source.opset_imports),
        name="stage",
    )
    model = ir.Model(graph, ir_version=rank.model.ir_version, producer_name="mm2c", functions=[])
    return StageGraph(model, first, layers, [name_of(value) for value in weights])


def _copied(node: ir.Node, values: dict[int, ir.Value], first: int) -> ir.Node:
    outputs = []
    for value in node.outputs:
        copy = ir.Value(name=_local(name_of(value), first), shape=value.shape, type=value.type)
        values[id(value)] = copy
        outputs.append(copy)
    return ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else values[id(value)] for value in node.inputs],
        list(node.attributes.values()),
        outputs=outputs,
        name=_local(node.name or "", first),
    )


def _local(name: str, first: int) -> str:
    cache = _CACHE.match(name)
    if cache is not None:
        return f"{cache[1]}.{int(cache[2]) - first}"
    return _LAYER.sub(lambda match: f"layers.{int(match[1]) - first}", name)


def _reads(nodes: list[ir.Node]) -> Iterable[ir.Value]:
    """Values that the nodes read and do not make, in order of first use."""
    made = {id(value) for node in nodes for value in node.outputs}
    seen: set[int] = set()
    for node in nodes:
        for value in node.inputs:
            if value is not None and id(value) not in made and id(value) not in seen:
                seen.add(id(value))
                yield value
