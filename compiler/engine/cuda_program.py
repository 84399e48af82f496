"""A lowered rank as the cuda engine's program: the plain values of ``cuda.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.passes.edit import name_of, present
from mm2c_runtime.manifest import PagedKvSpec

FORMAT = 2  # of cuda.json
DTYPES = {
    ir.DataType.FLOAT: "f32",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.FLOAT16: "f16",
    ir.DataType.INT32: "i32",
    ir.DataType.INT64: "i64",
    ir.DataType.BOOL: "bool",
    ir.DataType.FLOAT8E4M3FN: "e4m3",
}
_DTYPE_ATTRIBUTES = ("to", "out_dtype")
# Which inputs may be views of a wider tensor's columns, and the attribute that tells their row stride.
_STRIDES = {
    "M2QkSumSquares": {"q_stride": 0, "k_stride": 1},
    "M2PagedAttention": {"q_stride": 0, "k_stride": 1, "v_stride": 2},
}


@dataclass(frozen=True)
class ProgramFacts:
    """What a program states beside its nodes. ``library``: the plugin library's version. ``head``: of logits that
    are not gathered, the part of the vocabulary that this rank has; None where they are whole."""

    rank: int
    ranks: int
    kv: PagedKvSpec
    vocab: int
    logits: Literal["last", "all"]
    context: int
    max_rows: int
    prefill_chunk: int
    library: str
    abi: int
    weights_file: str
    head: dict[str, int] | None = None


def program_of(lowered: LoweredRank, facts: ProgramFacts) -> dict[str, Any]:
    """The program as JSON-able values.

    Nodes are in an order in which they can run. Dtypes are the recipes' names also where ONNX has numbers.
    Row strides (elements) are stated where q, k or v is a part of one Split: the parts are views, not copies.
    """
    graph = lowered.model.graph
    constants = {
        str(name): _constant(value)
        for name, value in graph.initializers.items()
        if value.const_value is not None
    }
    return {
        "format": FORMAT,
        "abi": facts.abi,
        "library": facts.library,
        "rank": facts.rank,
        "ranks": facts.ranks,
        "kv": facts.kv.model_dump(),
        "vocab": facts.vocab,
        "logits": facts.logits,
        "head": facts.head,
        "context": facts.context,
        "max_rows": facts.max_rows,
        "prefill_chunk": facts.prefill_chunk,
        "weights_file": facts.weights_file,
        "inputs": [name_of(value) for value in graph.inputs],
        "outputs": [name_of(value) for value in graph.outputs],
        "constants": constants,
        "weights": {
            name: {"dtype": recipe.dtype, "shape": list(recipe.shape)}
            for name, recipe in lowered.recipes.items()
        },
        "nodes": [_node(node, lowered) for node in graph],
    }


def _node(node: ir.Node, lowered: LoweredRank) -> dict[str, Any]:
    return {
        "name": node.name,
        "domain": node.domain,
        "op": node.op_type,
        "inputs": ["" if value is None else name_of(value) for value in node.inputs],
        "outputs": [name_of(value) for value in node.outputs],
        "attributes": {**_attributes(node), **_strides(node, lowered)},
    }


def _attributes(node: ir.Node) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if name in _DTYPE_ATTRIBUTES:
            found[name] = DTYPES[ir.DataType(value)]
        elif attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS):
            found[name] = list(value)
        elif isinstance(value, (int, float, str)):
            found[name] = value
        else:
            raise ValueError(
                f"{node.name}: attribute {name} of type {attribute.type} has no place in a program"
            )
    return found


def _strides(node: ir.Node, lowered: LoweredRank) -> dict[str, int]:
    found = {}
    for name, index in _STRIDES.get(node.op_type, {}).items():
        split = present(node.inputs[index]).producer()
        if split is not None and split.op_type == "Split":
            sizes = present(split.inputs[1]).const_value
            if sizes is None:
                raise ValueError(f"{split.name}: its widths are no constant")
            found[name] = int(sizes.numpy().sum())
    return found


def _constant(value: ir.Value) -> dict[str, Any]:
    tensor = value.const_value
    assert tensor is not None
    array = tensor.numpy()
    return {
        "dtype": DTYPES[tensor.dtype],
        "shape": list(array.shape),
        "data": array.reshape(-1).tolist(),
    }
