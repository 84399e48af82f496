"""M2PagedAttention of ops that TensorRT-RTX's parser has layers for: it knows no NonZero, with which the specification
leaves padding out. Plans that serve have the plugin in its place."""

from __future__ import annotations

from onnx import FunctionProto

from mm2c.dialect import attention_maths as maths
from mm2c.dialect import paged_attention
from mm2c.dialect.body import FLOAT, INT64
from mm2c.lower.native.body import NativeBody


def paged_attention_body() -> FunctionProto:
    """Tokens that are padding are written behind the cache's last slot, and that is cut off again."""
    b = NativeBody(paged_attention.SCHEMA)
    positions = maths.query_positions(b)
    q, k = maths.query_and_key(b, positions)
    page = b.size("k_cache", 1)
    table = b.Cast("block_table", to=INT64)
    steps = b.Range(b.scalar(0), b.size("q", 1), b.scalar(1))
    real = b.Less(steps, b.Unsqueeze(b.Cast("new_len", to=INT64), b.ints(1)))  # [B, S]
    last = b.Sub(b.size("block_table", 1), b.scalar(1))
    own = b.GatherElements(table, b.Min(b.Div(positions, page), last), axis=1)  # the page of every token
    slot = b.Add(b.Mul(own, page), b.Mod(positions, page))
    behind = b.Mul(b.size("k_cache", 0), page)
    slot = b.Unsqueeze(b.Where(real, slot, behind), b.ints(2))
    valid = b.Max(b.Min(table, b.Sub(b.size("k_cache", 0), b.scalar(1))), b.scalar(0))

    def write(rows: str, cache: str) -> tuple[str, str]:
        """The cache with the new rows [B, S, kv_heads, D], and its view as f32[B, kv_heads, M·page, D].

        In f32, which holds every cache type exactly: ScatterND knows no e4m3.
        """
        slots = b.Reshape(b.Cast(cache, to=FLOAT), b.join(b.ints(-1), b.dims(cache, 2, 4)))
        spare = b.Slice(slots, b.ints(0), b.ints(1), b.ints(0))
        new = b.Cast(b.CastLike(rows, cache), to=FLOAT)
        with_spare = b.ScatterND(b.Concat(slots, spare, axis=0), slot, new)
        kept = b.Slice(with_spare, b.ints(0), b.Reshape(behind, b.ints(1)), b.ints(0))
        written = b.Reshape(kept, b.Shape(cache))
        pages = b.Gather(written, valid, axis=0)  # [B, M, page, kv_heads, D]
        view = b.Reshape(pages, b.join(b.ints(0, -1), b.dims(cache, 2, 4)))
        return b.CastLike(written, cache), b.Transpose(view, perm=[0, 2, 1, 3])

    k_cache, keys = write(b.Transpose(k, perm=[0, 2, 1, 3]), "k_cache")
    v_cache, values = write(maths.value_rows(b), "v_cache")
    return b.function(maths.attend(b, q, keys, values, positions), k_cache, v_cache)
