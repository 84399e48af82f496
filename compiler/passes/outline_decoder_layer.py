"""Outlining: the decoder layers, alike but for their weights and caches, become calls of one ONNX function."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable

import onnx_ir as ir

from mm2c.passes.edit import DOMAIN, PassError

FUNCTION = "DecoderLayer"  # of the most layers; one that differs has its first layer's index behind it
LAYER = "mm2c.layer"  # metadata of a call: the index of its layer
_IN_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)[./]")
_CACHE = re.compile(r"([kv]_cache(?:_out)?)\.\d+")
_HIDDEN = (ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
# ONNX Runtime takes these types as inputs of standard ops in a function, but not of functions inside it: an Identity
# lets them in.
_NOT_NESTED = (ir.DataType.FLOAT8E4M3FN,)

Signature = tuple[Hashable, ...]


def outline_decoder_layers(model: ir.Model) -> ir.Model:
    """Replace each decoder layer of ``model`` by a call of a function of the model, in place, and return it.

    A layer's nodes are those named after it (``model.layers.3.…``) or reading its tensors, and everything between
    them. Layers share a function where ops, attributes, wiring, and the types of what they read are equal; usually
    all do, but a lowering may have merged something into the first or last one, which then get functions of their
    own. Hidden states, caches, tensors and constants are inputs; a function body has no name of a layer in it, and
    ``call's name.node's name`` is the node's name before. Function bodies of dialect ops must be attached already.

    Raises:
        PassError: the layers cannot be told apart, or one holds a subgraph.
    """
    graph = model.graph
    layers = layers_of(graph)
    alike: dict[Signature, list[int]] = defaultdict(list)
    for layer, nodes in layers.items():
        alike[_signature(nodes, _reads(nodes), _results(graph, nodes))].append(layer)
    most = max(alike.values(), key=len, default=[])
    names = {}
    for group in alike.values():
        name = FUNCTION if group is most else f"{FUNCTION}_{group[0]}"
        function = _function(name, graph, layers[group[0]])
        model.functions[function.identifier()] = function
        names.update(dict.fromkeys(group, name))
    for layer, nodes in layers.items():
        _call(graph, names[layer], layer, nodes)
    if layers:
        graph.opset_imports[DOMAIN] = 1
        graph.sort()
    return model


def inline_decoder_layers(model: ir.Model) -> ir.Model:
    """The inverse, in place: every call of a decoder layer's function is its nodes again, under their full names."""
    graph = model.graph
    calls = [node for node in graph if is_layer_call(node)]
    for call in calls:
        function = model.functions[(call.domain, call.op_type, call.overload)]
        given = {id(inner): outer for inner, outer in zip(function.inputs, call.inputs, strict=True)}
        named = {id(inner): outer for inner, outer in zip(function.outputs, call.outputs, strict=True)}
        for node in function:
            if is_entrance(node):
                given[id(node.outputs[0])] = given[id(node.inputs[0])]
                continue
            copied = _copied(node, given, full_name(call.name or "", node.name or ""))
            for inner, value in zip(node.outputs, copied.outputs, strict=True):
                outer = named.get(id(inner))
                value.name = full_name(call.name or "", inner.name or "")
                if outer is not None:
                    value.name, value.type, value.shape = outer.name, outer.type, outer.shape
                    _replace(graph, outer, value)
            graph.insert_before(call, copied)
        graph.remove(call, safe=True)
    for key in {(call.domain, call.op_type, call.overload) for call in calls}:
        del model.functions[key]
    return model


def is_layer_call(node: ir.Node) -> bool:
    """Whether a node calls a decoder layer's function."""
    return node.domain == DOMAIN and re.fullmatch(rf"{FUNCTION}(_\d+)?", node.op_type) is not None


def is_entrance(node: ir.Node) -> bool:
    """Whether a node of a layer's function only lets an input in (see ``_NOT_NESTED``)."""
    value = node.inputs[0] if node.op_type == "Identity" else None
    return value is not None and value.is_graph_input()


def full_name(call: str, inner: str) -> str:
    """What a function's node or value is called outside: ``model.layers.3`` and ``mlp.gate`` are
    ``model.layers.3.mlp.gate``."""
    return call + inner if inner.startswith("/") else f"{call}.{inner}"


def layers_of(graph: ir.Graph) -> dict[int, list[ir.Node]]:
    """The nodes of each decoder layer in the graph's order. PassError where a layer needs what a later one makes."""
    own = {id(node): _named_layer(node) for node in graph}
    above: dict[int, int] = {}  # the last layer that a node depends on, itself included
    for node in graph:
        before = [above[id(p)] for p in _producers(node)]
        named = own[id(node)]
        if named is not None and any(layer > named for layer in before):
            raise PassError(f"{node.name} of layer {named} reads what a later layer makes")
        above[id(node)] = max([*before, -1 if named is None else named])
    below: dict[int, int | None] = {}  # the first layer that depends on a node
    for node in reversed(list(graph)):
        users = [user for value in node.outputs for user in value.consumers()]
        found = [own[id(u)] if own[id(u)] is not None else below[id(u)] for u in users]
        behind = [layer for layer in found if layer is not None]
        below[id(node)] = min(behind) if behind else None
    layers: dict[int, list[ir.Node]] = defaultdict(list)
    for node in graph:
        layer = own[id(node)]
        if layer is None and above[id(node)] == below[id(node)]:
            layer = below[id(node)]
        if layer is not None:
            layers[layer].append(node)
    return dict(sorted(layers.items()))


def _named_layer(node: ir.Node) -> int | None:
    """By its name, else by the tensors that it reads."""
    for name in (
        node.name,
        *(value.name for value in node.inputs if value is not None and value.is_initializer()),
    ):
        found = _IN_LAYER.match(name or "")
        if found:
            return int(found[1])
    return None


def _producers(node: ir.Node) -> Iterable[ir.Node]:
    return [p for p in (value.producer() for value in node.inputs if value is not None) if p is not None]


def _reads(nodes: list[ir.Node]) -> list[ir.Value]:
    """What the nodes read and do not make, in order of first use."""
    made = {id(value) for node in nodes for value in node.outputs}
    found: dict[int, ir.Value] = {}
    for node in nodes:
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise PassError(f"{node.name}: a node with a subgraph is not outlined")
        found.update(
            {id(v): v for v in node.inputs if v is not None and id(v) not in made and id(v) not in found}
        )
    return list(found.values())


def _results(graph: ir.Graph, nodes: list[ir.Node]) -> list[ir.Value]:
    """What others read, or the graph returns, of what the nodes make."""
    inside = {id(node) for node in nodes}
    returned = {id(value) for value in graph.outputs}
    return [
        value
        for node in nodes
        for value in node.outputs
        if id(value) in returned or any(id(user) not in inside for user in value.consumers())
    ]


def _signature(nodes: list[ir.Node], reads: list[ir.Value], results: list[ir.Value]) -> Signature:
    """Equal for layers that are the same but for names."""
    place = {id(value): ("read", i, 0) for i, value in enumerate(reads)}
    place |= {id(v): ("made", i, j) for i, node in enumerate(nodes) for j, v in enumerate(node.outputs)}
    body = tuple(
        (
            node.domain,
            node.op_type,
            node.overload,
            tuple(sorted((name, _value(attribute)) for name, attribute in node.attributes.items())),
            tuple(None if value is None else place[id(value)] for value in node.inputs),
            len(node.outputs),
        )
        for node in nodes
    )
    # sizes of what nodes make say nothing new, and are not known in every graph
    types = tuple((v.dtype, str(v.shape) if v.producer() is None else "") for v in reads)
    return (body, types, tuple(place[id(value)] for value in results))


def _value(attribute: ir.Attr) -> Hashable:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return (str(tensor.dtype), str(tensor.shape), tensor.tobytes())
    value = attribute.value
    return (str(attribute.type), tuple(value) if isinstance(value, (list, tuple)) else value)


def _function(name: str, graph: ir.Graph, nodes: list[ir.Node]) -> ir.Function:
    """The function of a layer's nodes: inputs are what they read and outputs what is read of them, in that order."""
    taken: set[str] = set()
    given: dict[int, ir.Value | None] = {}
    reads, inputs = _reads(nodes), []
    for value in reads:
        inner = ir.Value(name=_free(_input_name(value), taken), shape=value.shape, type=value.type)
        given[id(value)] = inner
        inputs.append(inner)
    copies = []
    for outer, inner in zip(reads, inputs, strict=True):
        if inner.dtype in _NOT_NESTED:
            entrance = ir.node("Identity", [inner], name=f"{inner.name}/Identity")
            entrance.outputs[0].name = _free(f"{inner.name}/Identity", taken)
            entrance.outputs[0].type, entrance.outputs[0].shape = inner.type, inner.shape
            given[id(outer)] = entrance.outputs[0]
            copies.append(entrance)
    for node in nodes:
        copied = _copied(node, given, _relative(node.name or ""))
        for outer, value in zip(node.outputs, copied.outputs, strict=True):
            value.name = _free(_relative(outer.name or ""), taken)
        copies.append(copied)
    outputs = [v for v in (given[id(value)] for value in _results(graph, nodes)) if v is not None]
    domains = {node.domain for node in copies}
    versions = {k: v for k, v in graph.opset_imports.items() if k in domains} | {DOMAIN: 1}
    body = ir.Graph(inputs, outputs, nodes=copies, opset_imports=versions, name=name)
    return ir.Function(DOMAIN, name, graph=body, attributes=[])


def _copied(node: ir.Node, given: dict[int, ir.Value | None], name: str) -> ir.Node:
    """The node with its inputs looked up in ``given``, which learns its outputs (not named yet)."""
    outputs = [ir.Value(shape=value.shape, type=value.type) for value in node.outputs]
    for old, new in zip(node.outputs, outputs, strict=True):
        given[id(old)] = new
    inputs = [None if value is None else given[id(value)] for value in node.inputs]
    attributes = list(node.attributes.values())
    return ir.Node(
        node.domain, node.op_type, inputs, attributes, overload=node.overload, outputs=outputs, name=name
    )


def _call(graph: ir.Graph, function: str, layer: int, nodes: list[ir.Node]) -> None:
    results = _results(graph, nodes)
    outputs = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in results]
    call = ir.Node(DOMAIN, function, _reads(nodes), outputs=outputs, name=f"model.layers.{layer}")
    call.metadata_props[LAYER] = str(layer)
    graph.insert_after(nodes[-1], call)
    for old, new in zip(results, outputs, strict=True):
        _replace(graph, old, new)
    graph.remove(nodes, safe=True)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for i, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[i] = new
    old.replace_all_uses_with(new)


def _input_name(value: ir.Value) -> str:
    """Hidden states come from nodes of other layers, or of the embedding, and have no name of their own here."""
    if value.producer() is not None and value.dtype in _HIDDEN:
        return "hidden"
    return _relative(value.name or "")


def _relative(name: str) -> str:
    """A name without its layer: ``mlp.gate`` of ``model.layers.3.mlp.gate``, ``/Add`` of ``model.layers.3/Add``."""
    cache = _CACHE.fullmatch(name)
    if cache:
        return cache[1]
    layer = _IN_LAYER.match(name)
    return name if layer is None else name[layer.end() - (name[layer.end() - 1] == "/") :]


def _free(name: str, taken: set[str]) -> str:
    free, count = name, 0
    while free in taken:
        count += 1
        free = f"{name}.{count}"
    taken.add(free)
    return free
