"""Fast lowering, step 1: what a graph does to a weight before using it moves into the weight's recipe."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, add_weight, as_f32, dequantized, drop_unused, transposed
from mm2c.passes.edit import name_of
from mm2c_runtime.weights.recipe import Recipe


def fold_weights(rank: LoweredRank) -> None:
    """Weights in the dtype and layout that the kernels read.

    Rewrite rules:
      1. Cast(weight) to f32              -> the weight stored as f32
      2. Transpose(weight)                -> the weight stored transposed, ``<name>.t``
      3. M2Fp8Linear(x, weight, scale)    -> MatMul(x, weight dequantised and transposed, ``<name>.t``)
    """
    for node in list(rank.model.graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            _fold(rank, node, as_f32, "")
        elif node.op_type == "Transpose":
            _fold(rank, node, transposed, ".t")
        elif node.op_type == "M2Fp8Linear":
            _lower_fp8_linear(rank, node)
    drop_unused(rank.model, rank.recipes)


def _fold(rank: LoweredRank, node: ir.Node, change: Callable[[Recipe], Recipe], suffix: str) -> None:
    source = node.inputs[0]
    if source is None or source.name not in rank.recipes:
        return
    recipe = change(rank.recipes[source.name])
    if len(source.uses()) > 1 and not suffix:
        suffix = ".f32"
    folded = add_weight(rank.model.graph, rank.recipes, f"{source.name}{suffix}", recipe)
    node.outputs[0].replace_all_uses_with(folded)
    rank.model.graph.remove(node, safe=True)


def _lower_fp8_linear(rank: LoweredRank, node: ir.Node) -> None:
    x, weight, scale = node.inputs
    name = name_of(weight)
    dense = dequantized(rank.recipes[name], rank.recipes[name_of(scale)], node)
    writer = Writer(rank.model, rank.recipes, node, name.removesuffix(".weight"))
    product = writer.one("MatMul", [x, writer.weight(f"{name}.t", transposed(dense))], "matmul")
    writer.replace(node, [product])
