"""A function body for TensorRT's parser: the dialect's op under its own name, with attributes that only these bodies
read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import AttributeProto, FunctionProto, helper

from mm2c.dialect.body import Body
from mm2c.dialect.schema import DOMAIN

OPSET = 24  # TensorScatter's
BLOCK_DEQUANTIZE = "TRT_BlockDequantize"  # a name that TensorRT's parser has a layer for


class NativeBody(Body):
    """``more``: names of INTS attributes that the emitted nodes carry beside the schema's."""

    def __init__(self, schema: Any, more: Sequence[str] = ()) -> None:
        super().__init__(schema)
        self._more = tuple(more)

    def ints_ref(self, name: str) -> AttributeProto:
        """A reference to one of ``more``."""
        if name not in self._more:
            raise ValueError(f"{self._schema.name} has no attribute {name} of its own")
        proto = AttributeProto()
        proto.ref_attr_name, proto.type = name, AttributeProto.INTS
        return proto

    def dequantized(self, weight: str, scale: str, block_shape: str, like: int) -> str:
        """The e4m3 weight by blocks in the activations' dtype; ``like`` is that dtype's ONNX number."""
        # ONNX Runtime derives which types an input may have from its first reader, and only knows readers of its own
        self.Shape(weight)
        return str(
            self.TRT_BlockDequantize(
                weight, scale, domain=DOMAIN, block_shape=self.ints_ref(block_shape), output_dtype=like
            )
        )

    def function(self, *results: str) -> FunctionProto:
        """As ``Body.function``, without the Identity at each output: a cache that TensorRT updates in place must be the
        layer's own output."""
        done = super().function(*results)
        names = {node.input[0]: node.output[0] for node in done.node[len(done.node) - len(results) :]}
        del done.node[len(done.node) - len(results) :]
        for node in done.node:
            for values in (node.input, node.output):
                for place, value in enumerate(values):
                    values[place] = names.get(value, value)
        domains = {node.domain for node in done.node}
        del done.opset_import[:]
        done.opset_import.append(helper.make_opsetid("", OPSET))
        done.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(domains - {""}))
        done.attribute.extend(self._more)
        return done
