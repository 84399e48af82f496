"""Fast lowering, step 3: QK norm and attention on GroupQueryAttention, with the cache updated in place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer, drop_unused
from mm2c.passes.edit import name_of, present


def lower_attention(rank: LoweredRank) -> None:
    """M2Attention and M2QkSumSquares as contrib operators.

    Rewrite rules:
      1. once: seqlens_k = past_len + new_len - 1, total_len = max(past_len + new_len)
      2. whole norm on this rank (sums straight from M2QkSumSquares): SimplifiedLayerNormalization of q and
         of k
      3. norm over ranks (sums from a collective): x · (s / total + eps)^-1/2 · weight
      4. M2QkSumSquares that remain: Concat(ReduceSumSquare(q), ReduceSumSquare(k))
      5. M2Attention -> GroupQueryAttention; partial rotation follows from the width of cos and sin
      6. widths that the operator does not rotate (head_dim not in 16s, rotary_dim not in 16s):
         RotaryEmbedding of q and of k in front of it, at positions past_len + 0 … S-1

    The kernel takes one new token in every row, or several in one row, all of them real.
    """
    nodes = [n for n in rank.model.graph if n.op_type == "M2Attention"]
    if not nodes:
        return
    step = _step(rank, next(iter(rank.model.graph)))
    for node in nodes:
        _lower(rank, node, step)
    drop_unused(rank.model, rank.recipes)
    for node in [n for n in rank.model.graph if n.op_type == "M2QkSumSquares"]:
        _lower_sums(rank, node)


@dataclass(frozen=True)
class _Step:
    """Of every row: ``last`` i32[B], the position of its last new token; ``total`` i32[], the longest row;
    ``positions`` i64[B, S]."""

    last: ir.Value
    total: ir.Value
    positions: ir.Value


def _step(rank: LoweredRank, first: ir.Node) -> _Step:
    ids, past, new = rank.model.graph.inputs[:3]
    writer = Writer(rank.model, rank.recipes, first, "step")
    i32, i64 = ir.DataType.INT32, ir.DataType.INT64
    length = writer.one("Add", [past, new], "length", kind=i32)
    last = writer.one("Sub", [length, writer.constant("one_i32", np.asarray(1, np.int32))], "last", kind=i32)
    total = writer.one("ReduceMax", [length], "total", kind=i32, keepdims=0)
    axis = writer.constant("last_axis", [-1])
    zero, one = (writer.constant(f"i64_{n}", np.asarray(n, np.int64)) for n in (0, 1))
    size = writer.one("Shape", [ids], "size", kind=i64, start=1, end=2)
    width = writer.one("Squeeze", [size, axis], "width", kind=i64)
    offsets = writer.one("Range", [zero, width, one], "offsets", kind=i64)
    start = writer.one("Cast", [past], "start", kind=i64, to=i64)
    starts = writer.one("Unsqueeze", [start, axis], "starts", kind=i64)
    return _Step(last, total, writer.one("Add", [starts, offsets], "positions", kind=i64))


def _lower(rank: LoweredRank, node: ir.Node, step: _Step) -> None:
    q, k, v, sums, q_weight, k_weight, cos, sin, _, _, k_cache, v_cache = map(present, node.inputs)
    layer = name_of(k_cache).rsplit(".", 1)[1]
    writer = Writer(rank.model, rank.recipes, node, f"layers.{layer}.attention")
    producer = sums.producer()
    eps = node.attributes["eps"].as_float()
    if producer is not None and producer.op_type == "M2QkSumSquares":
        q = writer.one(
            "SimplifiedLayerNormalization", [q, q_weight], "q_norm", axis=-1, epsilon=eps, stash_type=1
        )
        k = writer.one(
            "SimplifiedLayerNormalization", [k, k_weight], "k_norm", axis=-1, epsilon=eps, stash_type=1
        )
    else:
        totals = node.attributes["q_total"].as_int(), node.attributes["k_total"].as_int()
        share = writer.constant("qk_norm_share", np.asarray([1 / totals[0], 1 / totals[1]], np.float32))
        mean = writer.one(
            "Add", [writer.one("Mul", [sums, share], "mean"), writer.constant("qk_norm_eps", eps)], "shifted"
        )
        factor = writer.one("Reciprocal", [writer.one("Sqrt", [mean], "rms")], "factor")
        of_q, of_k = writer.emit("Split", [factor], "factors", outputs=2, axis=-1, num_outputs=2)
        q = writer.one("Mul", [writer.one("Mul", [q, of_q], "q_unit"), q_weight], "q_norm")
        k = writer.one("Mul", [writer.one("Mul", [k, of_k], "k_unit"), k_weight], "k_norm")
    rotates = (
        node.attributes["head_dim"].as_int() % 16 == 0 and node.attributes["rotary_dim"].as_int() % 16 == 0
    )
    if not rotates:
        q, k = (
            writer.one(
                "RotaryEmbedding",
                [x, cos, sin, step.positions],
                f"{name}_rotated",
                num_heads=node.attributes[heads].as_int(),
                rotary_embedding_dim=node.attributes["rotary_dim"].as_int(),
            )
            for x, name, heads in ((q, "q", "heads"), (k, "k", "kv_heads"))
        )
    attended = writer.emit(
        "GroupQueryAttention",
        [q, k, v, k_cache, v_cache, step.last, step.total, *((cos, sin) if rotates else ())],
        "gqa",
        domain="com.microsoft",
        outputs=3,
        num_heads=node.attributes["heads"].as_int(),
        kv_num_heads=node.attributes["kv_heads"].as_int(),
        scale=node.attributes["scale"].as_float(),
        do_rotary=int(rotates),
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
