"""A small writer of ONNX functions: operators are methods, values are their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, TensorProto, helper
from onnx.defs import OpSchema

from mm2c.dialect.schema import OPSET

FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64
_ATTRIBUTE_TYPES = {
    OpSchema.AttrType.INT: AttributeProto.INT,
    OpSchema.AttrType.FLOAT: AttributeProto.FLOAT,
}


class Body:
    """The nodes of one op's function body, or of a subgraph inside it.

    ``body.MatMul(a, b)`` appends a node and returns the name of its output; ``outputs=2`` returns a tuple
    of names; ``body.ref("scale")`` as an attribute's value stands for the attribute of the calling node.
    """

    def __init__(self, schema: OpSchema, parent: Body | None = None) -> None:
        self._schema = schema
        self._nodes: list[onnx.NodeProto] = []
        self._root: Body = parent._root if parent else self
        self._count = 0
        self._constants: dict[tuple[int, ...] | int, str] = {}

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)

        def emit(*inputs: str, outputs: int = 1, **attributes: Any) -> Any:
            self._root._count += 1
            stem = f"{op_type}_{self._root._count}"
            names = [stem] if outputs == 1 else [f"{stem}_{i}" for i in range(outputs)]
            plain = {k: v for k, v in attributes.items() if not isinstance(v, AttributeProto)}
            node = helper.make_node(op_type, list(inputs), names, **plain)
            for key, value in attributes.items():
                if isinstance(value, AttributeProto):
                    reference = node.attribute.add()
                    reference.CopyFrom(value)
                    reference.name = key
            self._nodes.append(node)
            return names[0] if outputs == 1 else tuple(names)

        return emit

    def ref(self, attribute: str) -> AttributeProto:
        """A reference to an attribute of the op."""
        proto = AttributeProto()
        proto.ref_attr_name = attribute
        proto.type = _ATTRIBUTE_TYPES[self._schema.attributes[attribute].type]
        return proto

    def attribute(self, name: str) -> str:
        """An attribute of the op as a one-element vector (i64[1] or f32[1])."""
        reference = self.ref(name)
        if reference.type == AttributeProto.FLOAT:
            scalar = self.Constant(value_float=reference)
        else:
            scalar = self.Constant(value_int=reference)
        return str(self.Reshape(scalar, self.ints(1)))

    def ints(self, *values: int) -> str:
        """A constant i64 vector."""
        if values not in self._constants:
            self._constants[values] = self.Constant(value_ints=list(values))
        return self._constants[values]

    def scalar(self, value: int) -> str:
        """A constant i64 scalar."""
        if value not in self._constants:
            self._constants[value] = self.Constant(value_int=value)
        return self._constants[value]

    def join(self, *parts: str) -> str:
        """Vectors end to end: the way to write a shape."""
        return str(self.Concat(*parts, axis=0))

    def dims(self, value: str, start: int, end: int) -> str:
        """Sizes ``start`` … ``end - 1`` of ``value`` as an i64 vector."""
        return str(self.Shape(value, start=start, end=end))

    def size(self, value: str, axis: int) -> str:
        """One size of ``value`` as an i64 scalar."""
        return str(self.Squeeze(self.dims(value, axis, axis + 1), self.ints(0)))

    def block(self) -> Body:
        """An empty subgraph of this body; it sees the values around it."""
        return Body(self._schema, self)

    def graph(self, outputs: Sequence[str], inputs: Sequence[onnx.ValueInfoProto] = ()) -> GraphProto:
        """This block as the body of If, Loop or Scan."""
        results = [onnx.ValueInfoProto(name=name) for name in outputs]
        return helper.make_graph(self._nodes, f"{self._schema.name}_block", list(inputs), results)

    def function(self, *results: str) -> FunctionProto:
        """The finished function; ``results`` become the schema's outputs in order."""
        schema = self._schema
        for result, output in zip(results, schema.outputs, strict=True):
            self._nodes.append(helper.make_node("Identity", [result], [output.name]))
        return helper.make_function(
            schema.domain,
            schema.name,
            [i.name for i in schema.inputs],
            [o.name for o in schema.outputs],
            self._nodes,
            [helper.make_opsetid("", OPSET)],
            list(schema.attributes),
            doc_string=schema.doc,
        )
