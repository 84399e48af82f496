"""Fast lowering, step 2: the three projections of attention as one matrix product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, drop_unused, transposed
from mm2c_runtime.weights.recipe import Concat


def fuse_qkv(rank: LoweredRank) -> None:
    """MatMul(x, q.t), MatMul(x, k.t), MatMul(x, v.t) of one layer -> Split(MatMul(x, [q; k; v].t)).

    One product reads x once and keeps all threads busy; a decode step saves two kernel starts a layer.
    """
    for node in [n for n in rank.model.graph if n.op_type == "M2Attention"]:
        products = [_product(value) for value in node.inputs[:3]]
        if None in products or len({id(p.inputs[0]) for p in products if p}) != 1:
            continue
        _fuse(rank, [p for p in products if p is not None])
    drop_unused(rank.model, rank.recipes)


def _product(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "MatMul" else None


def _fuse(rank: LoweredRank, products: list[ir.Node]) -> None:
    names = [str(p.inputs[1].name) for p in products if p.inputs[1] is not None]
    recipes = [transposed(rank.recipes[name]) for name in names]  # rows again: [N, K]
    module = names[0].removesuffix(".q_proj.weight.t")
    order = {node: i for i, node in enumerate(rank.model.graph)}
    first = min(products, key=lambda p: order[p])
    writer = Writer(rank.model, rank.recipes, first, f"{module}.qkv_proj")
    weight = writer.weight(f"{module}.qkv_proj.weight.t", transposed(Concat(tuple(recipes), 0)))
    joined = writer.one("MatMul", [first.inputs[0], weight], "matmul")
    widths = [recipe.shape[0] for recipe in recipes]
    sizes = writer.constant("qkv_widths", np.asarray(widths, np.int64))
    parts = writer.emit("Split", [joined, sizes], "split", outputs=3, axis=-1)
    for product, part in zip(products, parts, strict=True):
        writer.replace(product, [part])
