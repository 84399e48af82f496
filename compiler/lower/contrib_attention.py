"""Fast lowering, step 3: QK norm and attention on GroupQueryAttention, with the cache updated in place."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, drop_unused


def lower_attention(rank: LoweredRank) -> None:
    """M2Attention and M2QkSumSquares as contrib operators.

    Rewrite rules:
      1. once: seqlens_k = past_len + new_len - 1, total_len = max(past_len + new_len)
      2. whole norm on this rank (sums straight from M2QkSumSquares): SimplifiedLayerNormalization of q and of k
      3. norm over ranks (sums from a collective): x · (s / total + eps)^-1/2 · weight
      4. M2QkSumSquares that remain: Concat(ReduceSumSquare(q), ReduceSumSquare(k))
      5. M2Attention -> GroupQueryAttention; partial rotation follows from the width of cos and sin

    The kernel takes one new token in every row, or several in one row, all of them real.
    """
    nodes = [n for n in rank.model.graph if n.op_type == "M2Attention"]
    if not nodes:
        return
    lengths = _lengths(rank, next(iter(rank.model.graph)), nodes[0].inputs[8], nodes[0].inputs[9])
    for node in nodes:
        _lower(rank, node, *lengths)
    drop_unused(rank.model, rank.recipes)
    for node in [n for n in rank.model.graph if n.op_type == "M2QkSumSquares"]:
        _lower_sums(rank, node)


def _lengths(
    rank: LoweredRank, first: ir.Node, past: ir.Value | None, new: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    writer = Writer(rank.model, rank.recipes, first, "step")
    length = writer.one("Add", [past, new], "length")
    last = writer.one("Sub", [length, writer.constant("one_i32", np.asarray(1, np.int32))], "last")
    total = writer.one("ReduceMax", [length], "total", keepdims=0)
    for value in (length, last, total):
        value.type = ir.TensorType(ir.DataType.INT32)
    return last, total


def _lower(rank: LoweredRank, node: ir.Node, last: ir.Value, total: ir.Value) -> None:
    q, k, v, sums, q_weight, k_weight, cos, sin, _, _, k_cache, v_cache = node.inputs
    assert q is not None and k is not None and sums is not None and k_cache is not None and k_cache.name
    writer = Writer(rank.model, rank.recipes, node, f"layers.{k_cache.name.rsplit('.', 1)[1]}.attention")
    producer = sums.producer()
    eps = node.attributes["eps"].as_float()
    if producer is not None and producer.op_type == "M2QkSumSquares":
        q = writer.one("SimplifiedLayerNormalization", [q, q_weight], "q_norm", axis=-1, epsilon=eps, stash_type=1)
        k = writer.one("SimplifiedLayerNormalization", [k, k_weight], "k_norm", axis=-1, epsilon=eps, stash_type=1)
    else:
        totals = node.attributes["q_total"].as_int(), node.attributes["k_total"].as_int()
        share = writer.constant("qk_norm_share", np.asarray([1 / totals[0], 1 / totals[1]], np.float32))
        mean = writer.one("Add", [writer.one("Mul", [sums, share], "mean"), writer.constant("qk_norm_eps", eps)], "shifted")
        factor = writer.one("Reciprocal", [writer.one("Sqrt", [mean], "rms")], "factor")
        of_q, of_k = writer.emit("Split", [factor], "factors", outputs=2, axis=-1, num_outputs=2)
        q = writer.one("Mul", [writer.one("Mul", [q, of_q], "q_unit"), q_weight], "q_norm")
        k = writer.one("Mul", [writer.one("Mul", [k, of_k], "k_unit"), k_weight], "k_norm")
    attended = writer.emit(
        "GroupQueryAttention",
        [q, k, v, k_cache, v_cache, last, total, cos, sin],
        "gqa",
        domain="com.microsoft",
        outputs=3,
        num_heads=node.attributes["heads"].as_int(),
        kv_num_heads=node.attributes["kv_heads"].as_int(),
        scale=node.attributes["scale"].as_float(),
        do_rotary=1,
        rotary_interleaved=0,
    )
    writer.replace(node, list(attended))


def _lower_sums(rank: LoweredRank, node: ir.Node) -> None:
    q, k = node.inputs
    scope = str(node.outputs[0].name).removesuffix(".input")
    writer = Writer(rank.model, rank.recipes, node, scope)
    axis = writer.constant("last_axis", [-1])
    of_q = writer.one("ReduceSumSquare", [q, axis], "of_q", keepdims=1)
    of_k = writer.one("ReduceSumSquare", [k, axis], "of_k", keepdims=1)
    writer.replace(node, [writer.one("Concat", [of_q, of_k], "joined", axis=-1)])
