"""A rank's graph in figures: ops of a layer and in all, inputs and outputs, what of the model the rank holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mm2c.bundle.rank_graph_file import REBUILD, RankGraphFile, attributes_of, own_nodes, stored_bytes
from mm2c.config import Mapping
from mm2c_runtime.errors import BundleError

if TYPE_CHECKING:
    from onnx import NodeProto, ValueInfoProto

    from mm2c_runtime.manifest import ModelInfo

ATTENTIONS = ("M2Attention", "M2PagedAttention")
PARTS = {  # part of the model -> what marks the names of its tensors, first match first
    "rope": ("rope.",),
    "embedding": ("model.embed_tokens.",),
    "head": ("lm_head.",),
    "norms": ("norm.weight",),
    "router": (".mlp.gate.", ".e_score_correction_bias"),
    "experts": (".mlp.experts.",),
    "attention": (".self_attn.",),
}


def graph_facts(graph: RankGraphFile) -> dict[str, Any]:
    """``nodes`` and ``ops`` are of the whole graph, every layer counted; ``layers`` has each layer function, its
    nodes and the layers that call it, ``outside`` what stands before and behind them."""
    ops = Counter(node.proto.op_type for node in graph.nodes())
    calls = graph.calls
    functions = []
    for name, function in graph.layer_functions.items():
        nodes = own_nodes(function)
        callers = [int(call.name.rpartition(".")[2]) for call in calls if call.op_type == name]
        functions.append({"function": name, "layers": callers, "nodes": len(nodes), "ops": _counted(nodes)})
    called = {call.op_type for call in calls}
    outside = [node for node in graph.model.graph.node if node.op_type not in called]
    return {
        "rank": graph.rank,
        "file": graph.name,
        "file_bytes": graph.path.stat().st_size,
        "nodes": sum(ops.values()),
        "ops": _sorted(ops),
        "layers": sorted(functions, key=lambda entry: entry["layers"][:1]),
        "outside": {"nodes": len(outside), "ops": _counted(outside)},
        "inputs": [_value(value) for value in graph.model.graph.input],
        "outputs": [_value(value) for value in graph.model.graph.output],
        "tensors": len(graph.tensors),
        "weight_bytes": sum(map(stored_bytes, graph.tensors)),
    }


def shard_facts(graph: RankGraphFile, model: ModelInfo, mapping: Mapping) -> dict[str, Any]:
    """What of the model ``mapping.rank`` holds, as half-open ranges, and its tensors' bytes by part.

    Sizes are the graph's, places the mapping's. Raises BundleError for a graph without attention or experts.
    """
    attention = attributes_of(_node(graph, ATTENTIONS))
    experts = attributes_of(_node(graph, (), having="first_expert"))
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.tensors}
    count, _, width = _shape(graph, shapes, "model.layers.0.mlp.experts.down_proj", 3)
    rows = _shape(graph, shapes, "model.embed_tokens.weight", 2)[0]
    tp, t = mapping.tp, mapping.tp_rank
    first_kv = t * attention["kv_heads"] if tp <= model.kv_heads else t * model.kv_heads // tp
    first_expert = experts["first_expert"]
    parts: dict[str, int] = dict.fromkeys((*PARTS, "other"), 0)
    for tensor in graph.tensors:
        parts[part_of(tensor.name)] += stored_bytes(tensor)
    return {
        "rank": graph.rank,
        "attention_group": mapping.attention_group,
        "query_heads": [t * attention["heads"], (t + 1) * attention["heads"]],
        "kv_heads": [first_kv, first_kv + attention["kv_heads"]],
        "experts": [first_expert, first_expert + count],
        "intermediate": [mapping.moe_tp_rank * width, (mapping.moe_tp_rank + 1) * width],
        "vocabulary": [min(t * rows, model.vocab), min((t + 1) * rows, model.vocab)],
        "tensors": len(graph.tensors),
        "bytes_by_part": {part: size for part, size in parts.items() if size},
        "bytes": sum(parts.values()),
    }


def part_of(tensor: str) -> str:
    """The part of the model that a tensor belongs to."""
    for part, marks in PARTS.items():
        if any(mark in tensor for mark in marks):
            return part
    return "other"


def _node(graph: RankGraphFile, ops: Iterable[str], having: str = "") -> NodeProto:
    for node in graph.nodes():
        if node.proto.op_type in ops or (having and any(a.name == having for a in node.proto.attribute)):
            return node.proto
    raise _broken(graph, f"no node {'of ' + ' or '.join(ops) if ops else 'with ' + having}")


def _shape(graph: RankGraphFile, shapes: dict[str, list[int]], name: str, rank: int) -> list[int]:
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        raise _broken(graph, f"no tensor {name} of {rank} axes")
    return shape


def _broken(graph: RankGraphFile, what: str) -> BundleError:
    return BundleError(f"{graph.name} has {what}", where=str(graph.path), remedy=REBUILD)


def _counted(nodes: Iterable[NodeProto]) -> dict[str, int]:
    return _sorted(Counter(node.op_type for node in nodes))


def _sorted(ops: Counter[str]) -> dict[str, int]:
    return dict(sorted(ops.items(), key=lambda item: (-item[1], item[0])))


def _value(value: ValueInfoProto) -> dict[str, Any]:
    """Name, dtype in ONNX's spelling, and shape: sizes, names of sizes, or None where unknown; None as a whole
    where the graph declares none."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    shape = [
        d.dim_value if d.HasField("dim_value") else d.dim_param if d.HasField("dim_param") else None
        for d in tensor.shape.dim
    ]
    dtype = TensorProto.DataType.Name(tensor.elem_type).lower()
    return {"name": value.name, "dtype": dtype, "shape": shape if tensor.HasField("shape") else None}
