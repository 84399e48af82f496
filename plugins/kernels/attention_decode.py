"""The second half of M2PagedAttention for one query a row: attention over the row's pages, split along its length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mm2c_plugins.kernels.paged_kv import PAGES, kv_formats, load_queries, load_tile, tile_offsets

if TYPE_CHECKING:
    from mm2c_plugins.kernels.catalogue import TileTable, Variant

PARAMETERS = {
    "q": "*bf16",
    "k_cache": "*{kv}",
    "v_cache": "*{kv}",
    "block_table": "*i32",
    "past_len": "*i32",
    "new_len": "*i32",
    "part": "*fp32",
    "lse": "*fp32",
    "out": "*bf16",
    "M": "i32",
    "pages": "i32",
    "HQ": "i32",
    "HK": "i32",
    "splits": "i32",
    "scale": "fp32",
}


@triton.jit
def attention_decode(
    q,
    k_cache,
    v_cache,
    block_table,
    past_len,
    new_len,
    part,
    lse,
    out,
    M,
    pages,
    HQ,
    HK,
    splits,
    scale,
    D: tl.constexpr,
    GP: tl.constexpr,
    PAGE: tl.constexpr,
    BN: tl.constexpr,
    W: tl.constexpr,
    DIRECT: tl.constexpr,
    KV8: tl.constexpr,
    U8: tl.constexpr,
    PDL: tl.constexpr,
    DEBUG: tl.constexpr,
):
    """The G = HQ/HK <= GP query heads of one KV head over one part of a row's past_len + 1 positions.

    q bf16 [B, HQ·D]; caches [pages, PAGE, HK, D] in bf16, or e4m3 with KV8 (as bytes with U8); block_table i32 [B, M];
    past_len, new_len i32 [B]; scale > 0. With DIRECT (splits = 1) out bf16 [B, HQ·D] is written; else part f32
    [B, HQ, splits, D], the softmax over the split alone, and lse f32 [B, HQ, splits], the BASE-2 logarithm of its
    denominator, for attention_merge. Splits are of whole tiles of BN positions and differ by one tile at most; one
    without a tile has lse = -inf and leaves its part unwritten. A row with new_len = 0 gives zeros.

    grid: (HK, splits, B); DIRECT: (HK, 1, B).
    """
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    b = tl.program_id(2)
    group = HQ // HK
    g = tl.arange(0, GP)
    d = tl.arange(0, D)
    head = kv_head * group + g
    stride = HK * D
    table = block_table + b.to(tl.int64) * M
    keys_of_head = k_cache + kv_head * D
    values_of_head = v_cache + kv_head * D
    if PDL:
        gdc_wait()
        gdc_launch_dependents()

    length = tl.minimum(tl.load(past_len + b) + 1, M * PAGE)
    length = tl.where(tl.load(new_len + b) > 0, length, 0)
    tiles = tl.cdiv(length, BN)
    first = split * tiles // splits
    last = (split + 1) * tiles // splits
    row = b.to(tl.int64) * HQ + head
    queries = load_queries(q + row[:, None] * D + d[None, :], (g < group)[:, None], KV8)
    base2_scale = scale * 1.4426950408889634

    # Each of the W warps attends to its own BN/W keys of a tile and keeps its own softmax: no barrier in the loop but
    # that of the copies.
    queries = tl.broadcast_to(queries[None, :, :], (W, GP, D))
    high = tl.full((W, GP), float("-inf"), tl.float32)
    total = tl.zeros((W, GP), tl.float32)
    acc = tl.zeros((W, GP, D), tl.float32)
    for tile in range(first, last):
        start = tile * BN
        column = tl.reshape(tl.arange(0, BN), (W, BN // W))
        seen = start + column < length
        base, offsets = tile_offsets(table, start, length, pages, stride, PAGE, BN, DEBUG)
        offsets = tl.reshape(offsets, (W, BN // W))
        keys = load_tile(keys_of_head, base, offsets, seen, D, True, KV8, U8)
        values = load_tile(values_of_head, base, offsets, seen, D, True, KV8, U8)
        score = tl.dot(queries, tl.permute(keys, (0, 2, 1)))
        score = tl.where(seen[:, None, :], score, float("-inf"))
        top = tl.maximum(high, tl.max(score, axis=2) * base2_scale)
        floor = tl.where(top == float("-inf"), 0.0, top)
        weight = tl.exp2(score * base2_scale - floor[:, :, None])
        fade = tl.exp2(high - floor)
        total = total * fade + tl.sum(weight, axis=2)
        acc = tl.dot(weight.to(values.dtype), values, acc * fade[:, :, None])
        high = top
    top = tl.max(high, axis=0)
    fade = tl.exp2(high - tl.where(top == float("-inf"), 0.0, top)[None, :])
    total = tl.sum(total * fade, axis=0)
    acc = tl.sum(acc * fade[:, :, None], axis=0)
    high = top

    filled = last > first
    acc = acc / tl.where(filled, total, 1.0)[:, None]
    if DIRECT:
        tl.store(out + row[:, None] * D + d[None, :], acc.to(tl.bfloat16), mask=(g < group)[:, None])
    else:
        at = row * splits + split
        tl.store(part + at[:, None] * D + d[None, :], acc, mask=(g < group)[:, None] & filled)
        tl.store(lse + at, tl.where(filled, high + tl.log2(total), float("-inf")), mask=g < group)


def variants(sm: int, tiles: TileTable) -> list[Variant]:
    from mm2c_plugins.kernels.catalogue import Variant

    found = []
    for row in tiles.get("attention_decode", []):
        for kind, types, flags in kv_formats(sm):
            for page in PAGES:
                for direct in (False, True):
                    block, warps, stages = row["BN"], row["num_warps"], row["num_stages"]
                    name = f"attention_decode.{kind}.page{page}.bn{block}.w{warps}.s{stages}"
                    constants = {
                        "D": 128,
                        "GP": 16,
                        "PAGE": page,
                        "BN": block,
                        "W": warps,
                        "DIRECT": direct,
                        **flags,
                    }
                    found.append(
                        Variant(
                            "attention_decode",
                            name + (".direct" if direct else ""),
                            {**constants, "PDL": sm >= 90, "DEBUG": False},
                            types=types,
                            num_warps=warps,
                            num_stages=stages,
                        )
                    )
    return found
