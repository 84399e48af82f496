"""M2Attention: QK norm, partial RoPE, cache write and GQA over a cache of rows."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from onnx import FunctionProto

from mm2c.dialect import attention_maths as maths
from mm2c.dialect.body import INT64, Body
from mm2c.dialect.schema import define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = None  # engines with a cache of rows have native layers for it

SCHEMA = define(
    "M2Attention",
    "q[B, S, heads·head_dim], k and v[B, S, kv_heads·head_dim] as projected; s[B, S, 2] the sums "
    "of squares of q and of k over the q_total and k_total elements of the whole model. Query i "
    "of row b stands at past_len[b] + i. Rows 0 … new_len[b] - 1 of k (normed, rotated) and of v "
    "are written to k_cache and v_cache[B, kv_heads, L, head_dim] at their positions; i >= "
    "new_len[b] is padding: it writes nothing and its output is finite but unspecified. Attention "
    "is over cache positions <= past_len[b] + i.",
    inputs=[*maths.INPUTS, ("k_cache", "C"), ("v_cache", "C")],
    outputs=maths.OUTPUTS,
    attributes=maths.ATTRIBUTES,
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    positions = maths.query_positions(b)
    q, k = maths.query_and_key(b, positions)

    # a cache slot takes new row slot - past_len if that is a real one, else keeps what it holds
    slots = b.Range(b.scalar(0), b.size("k_cache", 2), b.scalar(1))
    source = b.Sub(slots, b.Unsqueeze(b.Cast("past_len", to=INT64), b.ints(1)))  # [B, L]
    new = b.Unsqueeze(b.Cast("new_len", to=INT64), b.ints(1))
    written = b.And(b.GreaterOrEqual(source, b.scalar(0)), b.Less(source, new))
    written = b.Unsqueeze(written, b.ints(1, 3))  # [B, 1, L, 1]
    row = b.Max(b.Min(source, b.Sub(b.size("q", 1), b.scalar(1))), b.scalar(0))
    row = b.Unsqueeze(row, b.ints(2))  # [B, L, 1]

    def write(rows: str, cache: str) -> str:  # rows [B, S, kv_heads, D]
        placed = b.Transpose(b.GatherND(rows, row, batch_dims=1), perm=[0, 2, 1, 3])
        return str(b.Where(written, b.CastLike(placed, cache), cache))

    keys = write(b.Transpose(k, perm=[0, 2, 1, 3]), "k_cache")
    values = write(maths.value_rows(b), "v_cache")
    return b.function(maths.attend(b, q, keys, values, positions), keys, values)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    past_len: Tensor,
    new_len: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *attributes: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    widths = maths.AttentionWidths(*attributes)
    q, k, v, positions = maths.rows_reference(q, k, v, s, q_weight, k_weight, cos, sin, past_len, widths)
    keys, values = k_cache.clone(), v_cache.clone()
    for row, (past, new) in enumerate(zip(past_len.tolist(), new_len.tolist(), strict=True)):
        keys[row, :, past : past + new] = k[row, :new].transpose(0, 1).to(keys.dtype)
        values[row, :, past : past + new] = v[row, :new].transpose(0, 1).to(values.dtype)
    return maths.attend_reference(q, keys, values, positions, widths.scale), keys, values


def fake(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    k_cache, v_cache = rest[9], rest[10]
    return q.new_empty(q.shape), k_cache.new_empty(k_cache.shape), v_cache.new_empty(v_cache.shape)


@cache
def register_torch() -> TorchOp:
    signature = (
        f"({maths.TORCH_INPUTS}, Tensor k_cache, Tensor v_cache, {maths.TORCH_ATTRIBUTES}) "
        "-> (Tensor, Tensor, Tensor)"
    )
    return register(SCHEMA, "attention", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
