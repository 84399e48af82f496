"""A stage as the ONNX file that a TensorRT plan is built from, with the list of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx
import onnx_ir as ir

from mm2c.dialect import ops
from mm2c.lower.native import MoeForm, native_bodies
from mm2c.lower.native.body import OPSET
from mm2c.lower.native.experts import W2_BLOCK, W13_BLOCK
from mm2c.lower.native.linear import BLOCK_SHAPE
from mm2c.lower.stages import StageGraph
from mm2c.passes.edit import PassError, name_of
from mm2c_runtime.manifest_tensorrt import PlanTensor

NAMESPACE = "mm2c"  # of our creators in TensorRT's plugin registry
RANK_CONSTANTS = (
    "vocabulary.first",
)  # constants that differ from rank to rank: inputs, so that graphs do not differ
IR_VERSION = 11  # that of ONNX 1.18, which has opset 23 and 24
DTYPES: dict[ir.DataType, Literal["f32", "bf16", "f16", "i32", "i64", "bool", "e4m3"]] = {
    ir.DataType.FLOAT: "f32",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.FLOAT16: "f16",
    ir.DataType.INT32: "i32",
    ir.DataType.INT64: "i64",
    ir.DataType.BOOL: "bool",
    ir.DataType.FLOAT8E4M3FN: "e4m3",
}


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a plan's inputs and outputs need to be said. ``page`` 0: rows of ``context`` tokens."""

    hidden: int
    context: int
    page: int
    logits: tuple[int | str, ...]


@dataclass(frozen=True)
class PlanGraph:
    """``model``: serialised ONNX with bf16 activations. Equal bytes, equal plans."""

    model: onnx.ModelProto
    tensors: list[PlanTensor]
    layers: int


def plan_graph(stage: StageGraph, sizes: Sizes, form: MoeForm, activation: ir.DataType) -> PlanGraph:
    """The graph of a stage, tensors as inputs, every op of the dialect with a body of native layers. ``stage`` is used
    up."""
    graph = stage.model.graph
    for name in RANK_CONSTANTS:
        if name in graph.initializers:
            value = graph.initializers.pop(name)
            value.const_value, value.shape = None, ir.Shape([1])
            value.type = ir.TensorType(ir.DataType.INT64)
            graph.inputs.append(value)
    tensors = [_tensor(value, "input", sizes, activation) for value in graph.inputs]
    tensors += [_tensor(value, "output", sizes, activation) for value in graph.outputs]
    used = set()
    for node in graph:
        if node.domain == "mm2c":
            used.add(node.op_type)
            _plugin_attributes(node)
    stage.model.opset_imports[""] = OPSET
    stage.model.opset_imports["mm2c"] = 1
    model = ir.to_proto(stage.model)
    model.functions.extend(native_bodies(used, form, int(activation)))
    model.ir_version = max(model.ir_version, IR_VERSION)
    return PlanGraph(model, tensors, stage.layers)


def creators_of(model: onnx.ModelProto) -> set[str]:
    """The plugins that a graph has nodes for."""
    return {
        node.op_type for node in model.graph.node if any(a.name == "plugin_namespace" for a in node.attribute)
    }


def _plugin_attributes(node: ir.Node) -> None:
    """Where plugins are looked up, and what the bodies need beside the schema's attributes."""
    if ops[node.op_type].plugin is not None:
        node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", NAMESPACE)
    if "block_n" in node.attributes:
        n, k = node.attributes["block_n"].as_int(), node.attributes["block_k"].as_int()
        blocks = {"M2Fp8Linear": {BLOCK_SHAPE: (n, k)}}.get(
            node.op_type, {W13_BLOCK: (1, n, k), W2_BLOCK: (1, k, n)}
        )
        for name, shape in blocks.items():
            node.attributes[name] = ir.AttrInt64s(name, shape)


def _kind(name: str) -> Literal["step", "cache", "weight", "constant", "hidden", "logits"]:
    if name in ("input_ids", "past_len", "new_len", "block_table"):
        return "step"
    if name in RANK_CONSTANTS:
        return "constant"
    if name == "logits":
        return "logits"
    head = name.partition(".")[0]
    if head in ("k_cache", "v_cache", "k_cache_out", "v_cache_out"):
        return "cache"
    return "hidden" if head in ("hidden", "hidden_out") else "weight"


def _tensor(
    value: ir.Value, mode: Literal["input", "output"], sizes: Sizes, activation: ir.DataType
) -> PlanTensor:
    """Its record; the value gets the shape that is recorded."""
    name = name_of(value)
    kind = _kind(name)
    shape = [*value.shape] if value.shape is not None else []
    if kind == "step":
        known: list[int | str] = {
            "input_ids": ["batch", "seq"],
            "block_table": ["batch", "pages_of_row"],
        }.get(name, ["batch"])  # type: ignore[assignment]
    elif kind == "cache" and sizes.page:
        known = ["pages", sizes.page, _size(shape[2]), _size(shape[3])]
    elif kind == "cache":
        known = ["batch", _size(shape[1]), sizes.context, _size(shape[3])]
    elif kind == "hidden":
        known = ["batch", "seq", sizes.hidden]
        value.type = ir.TensorType(activation)
    elif kind == "logits":
        known = list(sizes.logits)
        value.type = ir.TensorType(ir.DataType.FLOAT)
    else:
        known = [_size(size) for size in shape]
    value.shape = ir.Shape(known)
    if value.dtype is None or value.dtype not in DTYPES:
        raise PassError(f"{name} has the type {value.dtype}")
    return PlanTensor(name=name, mode=mode, kind=kind, dtype=DTYPES[value.dtype], shape=known)


def _size(size: object) -> int:
    if not isinstance(size, int):
        raise PassError(f"a size is {size}, not a number")
    return size
