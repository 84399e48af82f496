"""Making the exporter's graph the compiler's own: no data, no leftovers, stable names, layers marked."""

from __future__ import annotations

import ast
import re

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    RemoveUnusedNodesPass,
)

LAYER = "mm2c.layer"  # metadata of a node: the index of its decoder layer, absent outside the layers
MODULE = "mm2c.module"  # metadata of a node: the module it comes from, by its canonical name
IR_VERSION = 11  # the one of opset 23
_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(model: ir.Model) -> ir.Model:
    """Normalise an exported model in place and return it.

    Afterwards initializers have no data, constants are folded and shared, every value has a dtype and every
    value but shape vectors a shape; dimensions are called batch, seq and kv_len; each node carries MODULE
    and LAYER and is named after them; nothing of the exporter's run (stack traces, versions) is left.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
        value.const_value = None
    mark_modules(model.graph)
    fold_shape_vectors(model.graph)
    IdentityEliminationPass()(model)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    for value in [v for v in model.graph.initializers.values() if not v.uses()]:
        del model.graph.initializers[value.name or ""]
    gather_indices(model.graph)
    name_dimensions(model.graph)
    read_sizes_of_the_ids(model.graph)
    complete_types(model.graph)
    rename(model.graph)
    model.producer_name, model.producer_version, model.doc_string = "mm2c", None, None
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string, model.graph.name = None, "minimax_m2"
    return model


def mark_modules(graph: ir.Graph) -> None:
    """Replace the exporter's metadata of nodes and values by MODULE and LAYER."""
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))[:-1]
        # scopes of no module start with an underscore
        module = max((s for s in scopes if not s.startswith("_")), key=len, default="")
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            output.doc_string = None
        if module:
            node.metadata_props[MODULE] = module
        layer = re.match(r"model\.layers\.(\d+)(\.|$)", module)
        if layer:
            node.metadata_props[LAYER] = layer[1]
    for value in [*graph.inputs, *graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None


def fold_shape_vectors(graph: ir.Graph) -> None:
    """Concat, Reshape and Squeeze of integer constants become constants."""
    known: dict[ir.Value, np.ndarray] = {}  # type: ignore[type-arg]
    for node in list(graph):
        if node.op_type == "Constant":
            tensor = _constant(node)
            if tensor is not None:
                known[node.outputs[0]] = tensor
            continue
        if node.op_type not in ("Concat", "Reshape", "Squeeze") or node.domain:
            continue
        operands = [known.get(value) if value is not None else None for value in node.inputs]
        arrays = [a for a in operands if a is not None]
        if len(arrays) != len(operands):
            continue
        if node.op_type == "Concat":
            result = np.concatenate(arrays)
        else:
            result = arrays[0].reshape(arrays[1] if node.op_type == "Reshape" else ())
        folded = ir.node("Constant", [], attributes={"value": ir.tensor(result)})
        folded.metadata_props.update(node.metadata_props)
        graph.insert_before(node, folded)
        known[folded.outputs[0]] = result
        node.outputs[0].replace_all_uses_with(folded.outputs[0])
        graph.remove(node, safe=True)


def _constant(node: ir.Node) -> np.ndarray | None:  # type: ignore[type-arg]
    """The value of an integer Constant, else None."""
    if "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
        return tensor.numpy() if tensor.dtype == ir.DataType.INT64 else None
    for kind in ("value_int", "value_ints"):
        if kind in node.attributes:
            return np.asarray(node.attributes[kind].value, dtype=np.int64)
    return None


def gather_indices(graph: ir.Graph) -> None:
    """Move constants and index arithmetic, which layers share, to the front and out of any module."""
    dtypes = (None, ir.DataType.INT64)
    index_nodes = [n for n in graph if all(o.dtype in dtypes and not o.is_graph_output() for o in n.outputs)]
    index_nodes = [n for n in index_nodes if n.op_type != "Transpose"]
    for node in index_nodes:
        node.metadata_props.clear()
    first = next(node for node in graph if node not in index_nodes)
    for node in index_nodes:
        graph.remove(node)
        graph.insert_before(first, node)


def name_dimensions(graph: ir.Graph) -> None:
    """Call the dynamic dimensions batch, seq and kv_len, in products too."""
    ids, cache = graph.inputs[0], graph.inputs[3]
    assert ids.shape is not None
    assert cache.shape is not None
    names = {str(ids.shape[0]): "batch", str(ids.shape[1]): "seq", str(cache.shape[2]): "kv_len"}
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            named = [
                d if isinstance(d, int) else pattern.sub(lambda m: names[m[0]], str(d)) for d in value.shape
            ]
            value.shape = ir.Shape(named)


def read_sizes_of_the_ids(graph: ir.Graph) -> None:
    """The sizes batch and seq come from input_ids, whichever input the exporter found them at: a lowering may give the
    caches another first axis.

    Raises:
        ValueError: the shape of another input is read for more than one size, or for one that the ids do not have.
    """
    ids = graph.inputs[0]
    assert ids.shape is not None
    places = {str(size): place for place, size in enumerate(ids.shape)}
    for node in [n for n in graph if n.op_type == "Shape" and n.inputs[0] in graph.inputs[1:]]:
        source = node.inputs[0]
        assert source is not None
        assert source.shape is not None
        start, end = (node.attributes[k].as_int() if k in node.attributes else None for k in ("start", "end"))
        read = list(source.shape[slice(start, end)])
        if len(read) != 1 or str(read[0]) not in places:
            raise ValueError(f"{node.name} reads the sizes {read} of {source.name}")
        place = places[str(read[0])]
        node.replace_input_with(0, ids)
        node.attributes["start"], node.attributes["end"] = (
            ir.AttrInt64("start", place),
            ir.AttrInt64("end", place + 1),
        )


def complete_types(graph: ir.Graph) -> None:
    """Dtype and shape of the values that translations made without saying: transposed weights and indices."""
    for node in graph:
        value = node.outputs[0]
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is not None and source.shape is not None and source.dtype is not None:
            value.dtype = source.dtype
            value.shape = ir.Shape([source.shape[p] for p in node.attributes["perm"].as_ints()])
        elif node.op_type == "Constant":
            constant = _constant(node)
            if constant is not None:
                value.dtype, value.shape = ir.DataType.INT64, ir.Shape(constant.shape)
        elif value.dtype is None:
            value.dtype = ir.DataType.INT64


def rename(graph: ir.Graph) -> None:
    """Name nodes and inner values ``module/OpType`` with a counter where one module has several."""
    outside = {v.name for v in [*graph.inputs, *graph.outputs, *graph.initializers.values()]}
    taken: dict[str, int] = {}
    for node in graph:
        module = node.metadata_props.get(MODULE, "step")
        stem = f"{module}/{node.op_type}"
        taken[stem] = taken.get(stem, 0) + 1
        name = stem if taken[stem] == 1 else f"{stem}.{taken[stem] - 1}"
        node.name = name
        for index, output in enumerate(node.outputs):
            if output.name not in outside:
                output.name = name if len(node.outputs) == 1 else f"{name}:{index}"
