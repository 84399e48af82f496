"""The same graph with f32 where it has bf16, for a runtime that computes no bf16."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

_FROM, _TO = TensorProto.BFLOAT16, TensorProto.FLOAT
_DTYPE_ATTRIBUTES = ("to", "output_dtype", "out_dtype", "dtype")


def widened(model: ModelProto) -> ModelProto:
    """A copy whose inputs, outputs, constants and casts of bf16 are f32: what it computes is what the graph says,
    without the roundings in between."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _graph(copy.graph)
    for function in copy.functions:
        _nodes(function.node)
    return copy


def _graph(graph: GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _FROM:
            value.type.tensor_type.elem_type = _TO
    for tensor in graph.initializer:
        _tensor(tensor)
    _nodes(graph.node)


def _nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name in _DTYPE_ATTRIBUTES and attribute.i == _FROM:
                attribute.i = _TO
            if attribute.type == AttributeProto.TENSOR:
                _tensor(attribute.t)
            if attribute.type == AttributeProto.GRAPH:
                _graph(attribute.g)


def _tensor(tensor: TensorProto) -> None:
    if tensor.data_type == _FROM:
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
