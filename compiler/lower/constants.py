"""cuda lowering, last step: Constant nodes become named tensors of the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.passes.edit import name_of

_TYPES = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}


def name_constants(rank: LoweredRank) -> None:
    """Constant -> an initializer with data, under the name of the node's output."""
    graph = rank.model.graph
    for node in [n for n in graph if n.op_type == "Constant"]:
        ((kind, attribute),) = node.attributes.items()
        data = attribute.as_tensor().numpy() if kind == "value" else np.asarray(attribute.value, _TYPES[kind])
        name = name_of(node.outputs[0])
        tensor = ir.tensor(data, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)
