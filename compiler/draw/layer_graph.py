"""What is drawn of a decoder layer: its nodes with their weights as notes, its ends, and the values between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mm2c.bundle.rank_graph_file import DOMAIN, RankGraphFile, attributes_of, own_nodes, stored_bytes
from mm2c.draw.shapes import ROWS, TOKENS, UNKNOWN, Typed, infer
from mm2c.errors import UserError

if TYPE_CHECKING:
    from onnx import NodeProto

Kind = Literal["end", "cache", "standard", "plugin", "dialect", "collective"]
DTYPES = {1: "f32", 6: "i32", 7: "i64", 10: "f16", 16: "bf16", 17: "e4m3"}  # by ONNX's numbers
_PREPARATION = ("Cast", "Transpose", "Identity")  # of weights: told in their notes
_CACHES = ("k_cache", "v_cache")
_UNITS = ("B", "KiB", "MiB", "GiB")


@dataclass(frozen=True)
class Vertex:
    """``notes``: the weights that it reads, one a line."""

    key: str
    kind: Kind
    title: str
    subtitle: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edge:
    """A value from one vertex to another; ``port``: which of the source's outputs."""

    source: str
    target: str
    port: int
    label: str


@dataclass
class LayerGraph:
    """``layers``: those that are like the one drawn; ``tensors`` and ``bytes``: of its weights on this rank."""

    function: str
    layers: list[int]
    vertices: list[Vertex] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    tensors: int = 0
    bytes: int = 0


def size_text(count: float) -> str:
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def layer_graph(graph: RankGraphFile) -> LayerGraph:
    """The layer function that most layers call, seen from the first of them.

    Constants and index arithmetic are left out, casts and transposes of weights told in the notes of what reads
    them. Raises UserError where the graph has no outlined layer.
    """
    functions = graph.layer_functions
    calls = graph.calls
    if not calls:
        raise UserError(
            f"{graph.name} has no decoder layer to draw",
            where=str(graph.path),
            remedy="build the bundle again",
        )
    most = max(functions, key=lambda name: sum(call.op_type == name for call in calls))
    call = next(call for call in calls if call.op_type == most)
    layers = [int(c.name.rpartition(".")[2]) for c in calls if c.op_type == most]
    return _Drawing(graph, call, LayerGraph(most, layers)).drawn()


class _Drawing:
    def __init__(self, graph: RankGraphFile, call: NodeProto, result: LayerGraph) -> None:
        self.function = graph.layer_functions[call.op_type]
        self.result = result
        self.types: dict[str, Typed] = {}
        self.weights: dict[str, str] = {}  # value -> how its note reads
        self.known: dict[str, list[int]] = {}  # integer constants
        self.unseen: set[str] = set()  # values that are not drawn: constants and index arithmetic
        self.told: dict[str, str] = {}  # small inputs, named in notes
        self.made: dict[str, tuple[str, int]] = {}  # value -> vertex and port
        self._read_inputs(graph, call)

    def _read_inputs(self, graph: RankGraphFile, call: NodeProto) -> None:
        tensors = {tensor.name: tensor for tensor in graph.model.graph.initializer}
        given = {value.name: value for value in graph.model.graph.input}
        for inner, outer in zip(self.function.input, call.input, strict=True):
            if outer in tensors and tensors[outer].external_data:
                tensor = tensors[outer]
                self.types[inner] = Typed(DTYPES.get(tensor.data_type, "?"), tuple(tensor.dims))
                self.weights[inner] = f"{_short(inner)} {self.types[inner]} {size_text(stored_bytes(tensor))}"
                if inner.startswith("rope."):
                    continue  # one for all layers
                self.result.tensors += 1
                self.result.bytes += stored_bytes(tensor)
            elif outer in tensors:
                self._constant(inner, tensors[outer])
            elif inner in _CACHES:
                self.types[inner] = _declared(given[outer])
                self._end(inner, "cache", f"{inner.replace('_', ' ')} in", str(self.types[inner]))
            elif outer in given:
                self.told[inner] = inner
            elif inner.startswith("hidden"):
                self._end(inner, "end", "from the layer before")
            else:
                self.unseen.add(inner)
                self._outer_constant(graph, inner, outer)
        self._type_hidden()

    def _constant(self, name: str, tensor: Any) -> None:
        from onnx import numpy_helper

        self.unseen.add(name)
        self.known[name] = [int(v) for v in numpy_helper.to_array(tensor).reshape(-1)]

    def _outer_constant(self, graph: RankGraphFile, inner: str, outer: str) -> None:
        """A constant that a node in front of the layers makes."""
        for node in graph.model.graph.node:
            if outer in node.output and node.op_type == "Constant":
                value = next(iter(attributes_of(node).values()))
                if isinstance(value, (list, tuple, int)):
                    self.known[inner] = [value] if isinstance(value, int) else list(value)
                else:
                    self._constant(inner, value)

    def _type_hidden(self) -> None:
        """Hidden states are [B, S, H], H that of the norm's weight, and of the output's dtype."""
        width = next((t.shape for n, t in self.types.items() if n == "input_layernorm.weight"), None)
        for name in self.function.input:
            if name.startswith("hidden"):
                shape = None if width is None else (ROWS, TOKENS, *width)
                self.types[name] = Typed(self._activation(), shape)

    def _activation(self) -> str:
        declared = {v.name: v.type.tensor_type.elem_type for v in self.function.value_info}
        return next(
            (DTYPES.get(declared.get(n, 0), "") for n in self.function.input if n.startswith("hidden")), ""
        )

    def _end(self, value: str, kind: Kind, title: str, subtitle: str = "") -> None:
        self.result.vertices.append(Vertex(value, kind, title, subtitle))
        self.made[value] = (value, 0)

    def drawn(self) -> LayerGraph:
        for node in own_nodes(self.function):
            self._draw(node)
        for name in self.function.output:
            cache = name.startswith(_CACHES)
            title = f"{name.removesuffix('_out').replace('_', ' ')} out" if cache else "to the next layer"
            key = f"out:{name}"
            subtitle = str(self.types.get(name, "")) if cache else ""
            self.result.vertices.append(Vertex(key, "cache" if cache else "end", title, subtitle))
            self._edge(name, key)
        return self.result

    def _draw(self, node: NodeProto) -> None:
        inputs = [self._entered(name) for name in node.input]
        attributes = attributes_of(node)
        types = [self.types.get(name, UNKNOWN) for name in inputs]
        constants = {i: self.known[name] for i, name in enumerate(inputs) if name in self.known}
        for name, kind in zip(node.output, infer(node.op_type, types, attributes, constants), strict=False):
            self.types[name] = kind
        real = [name for name in inputs if name]
        if node.op_type in _PREPARATION and len(real) == 1 and real[0] in self.weights:
            self.weights[node.output[0]] = self.weights[real[0]] + _prepared(
                node.op_type, attributes, self.types, node
            )
            return
        if node.op_type in ("Constant", "Shape") or all(n in self.unseen or n in self.told for n in real):
            self.unseen.update(node.output)
            return
        told = [self.told[name] for name in real if name in self.told]
        notes = [self.weights[name] for name in dict.fromkeys(real) if name in self.weights]
        if told:
            notes.append("reads " + ", ".join(told))
        title, subtitle = _titles(node, attributes)
        self.result.vertices.append(Vertex(node.name, _kind(node), title, subtitle, tuple(notes)))
        for name in dict.fromkeys(real):
            self._edge(name, node.name)
        for port, name in enumerate(node.output):
            self.made[name] = (node.name, port)

    def _entered(self, name: str) -> str:
        """A function's input by its own name where a node only lets it in."""
        return (
            name.removesuffix("/Identity") if name.removesuffix("/Identity") in self.function.input else name
        )

    def _edge(self, value: str, target: str) -> None:
        if value in self.made:
            source, port = self.made[value]
            # a cache says it in its own box
            label = "" if value.startswith(_CACHES) else str(self.types.get(value, ""))
            self.result.edges.append(Edge(source, target, port, label))


def _titles(node: NodeProto, attributes: dict[str, Any]) -> tuple[str, str]:
    module = node.name.rpartition("/")[0] if "/" in node.name else node.name
    if node.op_type == "DistCollective":
        kind = str(attributes["collective_operation"])
        title = f"{kind.replace('_', '-')} over {attributes['group_size']} ranks"
        return title, node.name.removesuffix(f".{kind}")
    sizes: dict[str, Any] = {
        name: attributes[name]
        for name in ("heads", "kv_heads", "top_k", "first_expert")
        if name in attributes
    }
    if "block_n" in attributes:
        sizes["blocks"] = f"{attributes['block_n']}×{attributes['block_k']}"
    text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sizes.items())
    return node.op_type, " · ".join(part for part in (module, text) if part)


def _kind(node: NodeProto) -> Kind:
    from mm2c.dialect import ops

    if node.op_type == "DistCollective":
        return "collective"
    if node.domain != DOMAIN:
        return "standard"
    return "plugin" if node.op_type in ops and ops[node.op_type].plugin else "dialect"


def _short(name: str) -> str:
    """The last two parts of a tensor's name: ``q_proj.weight``."""
    return ".".join(name.split(".")[-2:])


def _prepared(op: str, attributes: dict[str, Any], types: dict[str, Typed], node: NodeProto) -> str:
    if op == "Cast":
        kind = DTYPES.get(attributes.get("to", 0), "?")
        types[node.output[0]] = Typed(kind, types.get(node.output[0], UNKNOWN).shape)
        return f" as {kind}"
    return " transposed" if op == "Transpose" else ""


def _declared(value: Any) -> Typed:
    tensor = value.type.tensor_type
    names = {"batch": ROWS, "seq": TOKENS}
    sizes: Sequence[int | str] = [
        d.dim_value if d.HasField("dim_value") else names.get(d.dim_param, d.dim_param or "?")
        for d in tensor.shape.dim
    ]
    return Typed(DTYPES.get(tensor.elem_type, "?"), tuple(sizes))
