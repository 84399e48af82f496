"""M2Attention over rows without padding: the cache update and the attention that TensorRT has layers for."""

from __future__ import annotations

from onnx import FunctionProto

from mm2c.dialect import attention
from mm2c.dialect import attention_maths as maths
from mm2c.dialect.body import INT64
from mm2c.lower.native.body import NativeBody


def attention_body() -> FunctionProto:
    """Requires new_len = S in every row: a step is one token of each row, or several of one. The mask is explicit:
    TensorRT's parser drops the input that gives the number of valid keys."""
    b = NativeBody(attention.SCHEMA)
    positions = maths.query_positions(b)
    q, k = maths.query_and_key(b, positions)
    at = b.Cast("past_len", to=INT64)
    v = b.Transpose(maths.value_rows(b), perm=[0, 2, 1, 3])
    keys = b.TensorScatter("k_cache", b.CastLike(k, "k_cache"), at, axis=2, mode="linear")
    values = b.TensorScatter("v_cache", b.CastLike(v, "v_cache"), at, axis=2, mode="linear")
    return b.function(_attend(b, q, keys, values, positions), keys, values)


def _attend(b: NativeBody, q: str, keys: str, values: str, positions: str) -> str:
    """As ``maths.attend``, with the heads that share keys as further queries of those: of one token TensorRT-RTX has no
    kernel for fewer KV heads than heads, and would write every row's whole cache once for each head instead."""
    folded = b.Reshape(q, b.join(b.ints(0), b.attribute("kv_heads"), b.ints(-1), b.attribute("head_dim")))
    sharing = b.join(b.ints(1), b.Div(b.attribute("heads"), b.attribute("kv_heads")), b.ints(1))
    repeated = b.Reshape(b.Expand(b.Unsqueeze(positions, b.ints(1)), sharing), b.ints(0, -1))
    slots = b.Range(b.scalar(0), b.size(keys, 2), b.scalar(1))
    seen = b.Unsqueeze(b.LessOrEqual(slots, b.Unsqueeze(repeated, b.ints(2))), b.ints(1))
    out = b.Attention(folded, b.CastLike(keys, q), b.CastLike(values, q), seen, scale=b.ref("scale"))
    heads = b.Reshape(out, b.join(b.ints(0), b.attribute("heads"), b.ints(-1), b.attribute("head_dim")))
    return str(b.Reshape(b.Transpose(heads, perm=[0, 2, 1, 3]), b.ints(0, 0, -1)))
