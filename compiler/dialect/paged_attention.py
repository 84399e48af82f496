"""M2PagedAttention: M2Attention over a cache of pages."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from onnx import FunctionProto

from mm2c.dialect import attention_maths as maths
from mm2c.dialect.body import FLOAT, INT64, Body
from mm2c.dialect.schema import I32, define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = "M2PagedAttention"
E4M3_MAX = 448.0  # what is larger is written as this

SCHEMA = define(
    "M2PagedAttention",
    "As M2Attention, with k_cache and v_cache[N, page, kv_heads, head_dim] and block_table[B, M]: "
    "position p of row b lies in page block_table[b, p // page] at offset p % page. Entries past "
    "a row's last page may hold anything, negative numbers included. Caches may be e4m3, without a scale: what is "
    "written is rounded to the nearest, and to ±448 beyond it.",
    inputs=[*maths.INPUTS, ("block_table", I32), ("k_cache", "C"), ("v_cache", "C")],
    outputs=maths.OUTPUTS,
    attributes=maths.ATTRIBUTES,
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    positions = maths.query_positions(b)
    q, k = maths.query_and_key(b, positions)
    page = b.size("k_cache", 1)
    table = b.Cast("block_table", to=INT64)

    # (row, i) of every real token, and the slot of the flattened cache that it takes
    steps = b.Range(b.scalar(0), b.size("q", 1), b.scalar(1))
    real = b.Less(steps, b.Unsqueeze(b.Cast("new_len", to=INT64), b.ints(1)))
    token = b.Transpose(b.NonZero(real), perm=[1, 0])  # [n, 2]
    position = b.GatherND(positions, token)
    row = b.Gather(token, b.scalar(0), axis=1)
    entry = b.Concat(b.Unsqueeze(row, b.ints(1)), b.Unsqueeze(b.Div(position, page), b.ints(1)), axis=1)
    slot = b.Add(b.Mul(b.GatherND(table, entry), page), b.Mod(position, page))
    slot = b.Unsqueeze(slot, b.ints(1))

    valid = b.Max(b.Min(table, b.Sub(b.size("k_cache", 0), b.scalar(1))), b.scalar(0))

    def write(rows: str, cache: str) -> tuple[str, str]:
        """The cache with the new rows [B, S, kv_heads, D], and its view as f32[B, kv_heads, M·page, D].

        In f32, which holds every cache type exactly: Gather and ScatterND know no e4m3.
        """
        slots = b.Reshape(b.Cast(cache, to=FLOAT), b.join(b.ints(-1), b.dims(cache, 2, 4)))
        new = b.Cast(b.CastLike(b.GatherND(rows, token), cache), to=FLOAT)
        written = b.Reshape(b.ScatterND(slots, slot, new), b.Shape(cache))
        pages = b.Gather(written, valid, axis=0)  # [B, M, page, kv_heads, D]
        view = b.Reshape(pages, b.join(b.ints(0, -1), b.dims(cache, 2, 4)))
        return b.CastLike(written, cache), b.Transpose(view, perm=[0, 2, 1, 3])

    k_cache, keys = write(b.Transpose(k, perm=[0, 2, 1, 3]), "k_cache")
    v_cache, values = write(maths.value_rows(b), "v_cache")
    return b.function(maths.attend(b, q, keys, values, positions), k_cache, v_cache)


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
    block_table: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *attributes: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    widths = maths.AttentionWidths(*attributes)
    q, k, v, positions = maths.rows_reference(q, k, v, s, q_weight, k_weight, cos, sin, past_len, widths)
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    page = k_cache.shape[1]
    for row, new in enumerate(new_len.tolist()):
        at = positions[row, :new]
        pages = block_table[row].long()[at // page]
        write_slots(k_cache, pages, at % page, k[row, :new])
        write_slots(v_cache, pages, at % page, v[row, :new])
    valid = block_table.long().clamp(0, len(k_cache) - 1)
    keys, values = (read_pages(cache, valid).flatten(1, 2).transpose(1, 2) for cache in (k_cache, v_cache))
    return maths.attend_reference(q, keys, values, positions, widths.scale), k_cache, v_cache


def write_slots(cache: Tensor, pages: Tensor, offsets: Tensor, rows: Tensor) -> None:
    """rows[n, kv_heads, D] into cache[pages[i], offsets[i]], in place."""
    import torch

    if cache.dtype == torch.float8_e4m3fn:  # torch's cast overflows to NaN, and its indexing knows no e4m3
        stored = rows.float().clamp(-E4M3_MAX, E4M3_MAX).to(cache.dtype)
        cache.view(torch.uint8)[pages, offsets] = stored.view(torch.uint8)
    else:
        cache[pages, offsets] = rows.to(cache.dtype)


def read_pages(cache: Tensor, pages: Tensor) -> Tensor:
    """cache[pages], pages of any shape."""
    import torch

    if cache.dtype == torch.float8_e4m3fn:
        return cache.view(torch.uint8)[pages].view(cache.dtype)
    return cache[pages]


def fake(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    k_cache, v_cache = rest[10], rest[11]
    return q.new_empty(q.shape), k_cache.new_empty(k_cache.shape), v_cache.new_empty(v_cache.shape)


@cache
def register_torch() -> TorchOp:
    signature = (
        f"({maths.TORCH_INPUTS}, Tensor block_table, Tensor k_cache, Tensor v_cache, "
        f"{maths.TORCH_ATTRIBUTES}) -> (Tensor, Tensor, Tensor)"
    )
    return register(SCHEMA, "paged_attention", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
