"""The nodes of a graph that plugins take, and the fields that TensorRT's ONNX parser makes of their attributes.

What the parser does was seen on the one of TensorRT-RTX 1.7, which is the same source: a node with the attribute
``plugin_namespace`` becomes the plugin of its name where a creator is registered in that namespace, and the function of
its name otherwise; without the attribute it is always the function. A field's type follows from the attribute and not
from what the creator announces: INT and INTS become int32, FLOAT and FLOATS float32, STRING char. Attributes that the
creator does not announce are dropped without a word, and announced ones that the node lacks are not passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import AttributeProto, TensorProto

from mm2c.dialect import ops

Kind = Literal["int32", "float32", "char"]
Given = tuple[Kind, tuple[int | float, ...] | bytes]
NAMESPACE_ATTRIBUTE, VERSION_ATTRIBUTE = "plugin_namespace", "plugin_version"
_BODIES = "bodies"  # of a domain that no schema is registered in
_INT32 = range(-(2**31), 2**31)
DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "f32",
    TensorProto.FLOAT16: "f16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT8E4M3FN: "e4m3",
    TensorProto.INT32: "i32",
    TensorProto.INT64: "i64",
    TensorProto.BOOL: "bool",
}


class NotAField(ValueError):
    """An attribute that the parser cannot hand to a creator, or would hand over as another value."""


@dataclass(frozen=True)
class NodeTensor:
    """``shape``: None for a size that the graph does not tell."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class PluginNode:
    """``name``: the node's, the layer's too. ``attributes``: those that a field could be made of, by name. ``inputs``
    and ``outputs``: None for one whose type the graph does not tell."""

    name: str
    op: str
    namespace: str
    version: str
    attributes: Mapping[str, Given]
    inputs: tuple[NodeTensor | None, ...]
    outputs: tuple[NodeTensor | None, ...]

    @property
    def needed(self) -> set[str]:
        """Attributes that say what the op computes: the dialect's. Others are for the function body alone."""
        own = (NAMESPACE_ATTRIBUTE, VERSION_ATTRIBUTE)
        known = ops[self.op].schema.attributes if self.op in ops else self.attributes
        return {name for name in self.attributes if name in known and name not in own}

    @property
    def alike(self) -> tuple[object, ...]:
        """Equal for nodes that get equal plugins."""
        given = tuple(sorted(self.attributes.items()))
        return self.op, self.namespace, self.version, given, self.inputs, self.outputs


def plugin_nodes(graph: bytes | onnx.ModelProto) -> list[PluginNode]:
    """The plugin nodes of a serialised ONNX graph, those in functions of layers too, in their order.

    Raises:
        NotAField: naming node and attribute.
    """
    model = onnx.ModelProto.FromString(graph) if isinstance(graph, bytes) else graph
    types = _types(model)
    functions = {function.name: function for function in model.functions}  # the parser ignores domains
    return list(_walk(model.graph.node, functions, types, {}, ""))


def _types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The values of the graph that have a known type, by name."""
    bodies = onnx.ModelProto()
    bodies.CopyFrom(model)
    # ONNX asks registered schemas before functions; the dialect's tell no types, its bodies do
    for part in (bodies, bodies.graph, *bodies.functions):
        for named in (*getattr(part, "node", ()), *getattr(part, "opset_import", ())):
            named.domain += f".{_BODIES}" if named.domain else ""
    for function in bodies.functions:
        function.domain += f".{_BODIES}"
    typed = onnx.shape_inference.infer_shapes(bodies).graph
    return {value.name: value for value in (*typed.value_info, *typed.output, *typed.input)}


def _walk(
    nodes: Iterable[onnx.NodeProto],
    functions: Mapping[str, onnx.FunctionProto],
    types: Mapping[str, onnx.ValueInfoProto],
    bound: Mapping[str, AttributeProto],
    within: str,
) -> Iterator[PluginNode]:
    """``types``: of the values of the graph itself. ``bound``: attributes of the call of the function that ``nodes``
    are the body of."""
    for node in nodes:
        given = dict(_resolved(node, bound))
        name = f"{within}{node.name or node.op_type}"
        if NAMESPACE_ATTRIBUTE in given:
            yield _plugin(node, name, given, types)
        elif node.op_type in functions:
            body = functions[node.op_type]
            defaults = {default.name: default for default in body.attribute_proto}
            yield from _walk(body.node, functions, {}, {**defaults, **given}, f"{name}/")


def _resolved(
    node: onnx.NodeProto, bound: Mapping[str, AttributeProto]
) -> Iterator[tuple[str, AttributeProto]]:
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            yield attribute.name, attribute
        elif attribute.ref_attr_name in bound:
            yield attribute.name, bound[attribute.ref_attr_name]


def _plugin(
    node: onnx.NodeProto,
    name: str,
    given: Mapping[str, AttributeProto],
    types: Mapping[str, onnx.ValueInfoProto],
) -> PluginNode:
    values = {}
    for key, attribute in given.items():
        try:
            values[key] = _value(attribute)
        except NotAField as error:
            raise NotAField(f"{name} ({node.op_type}): attribute {key} {error}") from None
    return PluginNode(
        name=name,
        op=node.op_type,
        namespace=_text(values, NAMESPACE_ATTRIBUTE, ""),
        version=_text(values, VERSION_ATTRIBUTE, "1"),
        attributes=values,
        inputs=tuple(_tensor(types.get(value)) for value in node.input),
        outputs=tuple(_tensor(types.get(value)) for value in node.output),
    )


def _tensor(value: onnx.ValueInfoProto | None) -> NodeTensor | None:
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    known = value.type.tensor_type
    if known.elem_type not in DTYPES:
        return None
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in known.shape.dim)
    return NodeTensor(DTYPES[known.elem_type], shape)


def _text(values: Mapping[str, Given], name: str, absent: str) -> str:
    value = values[name][1] if name in values else absent.encode()
    if not isinstance(value, bytes):
        raise NotAField(f"{name} is no text")
    return value.decode()


def _value(attribute: AttributeProto) -> Given:
    if attribute.type in (AttributeProto.INT, AttributeProto.INTS):
        whole = (attribute.i,) if attribute.type == AttributeProto.INT else tuple(attribute.ints)
        beyond = [value for value in whole if value not in _INT32]
        if beyond:
            raise NotAField(f"is {beyond[0]}, which TensorRT's parser cuts to 32 bits")
        return "int32", whole
    if attribute.type == AttributeProto.FLOAT:
        return "float32", (attribute.f,)
    if attribute.type == AttributeProto.FLOATS:
        return "float32", tuple(attribute.floats)
    if attribute.type == AttributeProto.STRING:
        return "char", bytes(attribute.s)
    raise NotAField(
        f"is of type {AttributeProto.AttributeType.Name(attribute.type)}, of which no field is made"
    )
