"""The second half of M2PagedAttention for several queries a row: causal attention over the row's pages."""

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
    "out": "*bf16",
    "S": "i32",
    "M": "i32",
    "pages": "i32",
    "HQ": "i32",
    "HK": "i32",
    "scale": "fp32",
}


@triton.jit
def _attend(q, keys, values, scale, seen, high, total, acc, MASK: tl.constexpr):
    """One step of the online softmax (FlashAttention-2, arXiv 2307.08691, algorithm 1), in powers of two.

    q [BM, D], keys and values [BN, D] of one 16-bit type; scale > 0, with log2(e) in it; seen bool [BM, BN]; the
    running maximum ``high`` and sum ``total`` f32 [BM], ``acc`` f32 [BM, D]. Every row must see a key in its first
    step.
    """
    score = tl.dot(q, tl.trans(keys))
    if MASK:
        score = tl.where(seen, score, float("-inf"))
    top = tl.maximum(high, tl.max(score, axis=1) * scale)
    weight = tl.exp2(score * scale - top[:, None])
    fade = tl.exp2(high - top)
    total = total * fade + tl.sum(weight, axis=1)
    acc = tl.dot(weight.to(values.dtype), values, acc * fade[:, None])
    return top, total, acc


@triton.jit
def attention_prefill(
    q,
    k_cache,
    v_cache,
    block_table,
    past_len,
    new_len,
    out,
    S,
    M,
    pages,
    HQ,
    HK,
    scale,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    KV8: tl.constexpr,
    U8: tl.constexpr,
    PDL: tl.constexpr,
    DEBUG: tl.constexpr,
):
    """BM queries of one head of one row; query i sees the cache's positions up to past_len[b] + i.

    q and out bf16 [B, S, HQ·D]; caches [pages, PAGE, HK, D] in bf16, or e4m3 with KV8 (as bytes with U8); block_table
    i32 [B, M]; past_len, new_len i32 [B]; scale > 0. Queries i >= new_len[b] are padding: their output is zero.
    Tiles of BN positions that every query of the program sees are computed without a mask; those on the diagonal come
    last. Blocks of queries start from the row's end, where there is most to do.

    grid: (ceil(S / BM), HQ, B).
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    b = tl.program_id(2)
    i = block * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    kv_head = head // (HQ // HK)
    stride = HK * D
    table = block_table + b.to(tl.int64) * M
    keys_of_head = k_cache + kv_head * D
    values_of_head = v_cache + kv_head * D
    at = ((b.to(tl.int64) * S + i) * HQ + head)[:, None] * D + d[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()

    past = tl.load(past_len + b)
    new = tl.load(new_len + b)
    end = tl.where(block * BM < new, past + tl.minimum(block * BM + BM, new), 0)
    end = tl.minimum(end, M * PAGE)
    full = tl.minimum(past + block * BM + 1, end) // BN
    queries = load_queries(q + at, (i < S)[:, None], KV8)
    base2_scale = scale * 1.4426950408889634

    high = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for tile in range(full):
        start = tile * BN
        base, offsets = tile_offsets(table, start, end, pages, stride, PAGE, BN, DEBUG)
        keys = load_tile(keys_of_head, base, offsets, None, D, False, KV8, U8)
        values = load_tile(values_of_head, base, offsets, None, D, False, KV8, U8)
        high, total, acc = _attend(queries, keys, values, base2_scale, None, high, total, acc, False)
    for tile in range(full, tl.cdiv(end, BN)):
        start = tile * BN
        column = start + tl.arange(0, BN)
        base, offsets = tile_offsets(table, start, end, pages, stride, PAGE, BN, DEBUG)
        keys = load_tile(keys_of_head, base, offsets, column < end, D, True, KV8, U8)
        values = load_tile(values_of_head, base, offsets, column < end, D, True, KV8, U8)
        seen = (column[None, :] <= past + i[:, None]) & (column < end)[None, :]
        high, total, acc = _attend(queries, keys, values, base2_scale, seen, high, total, acc, True)

    result = tl.where((i < new)[:, None], acc / tl.where(total > 0.0, total, 1.0)[:, None], 0.0)
    tl.store(out + at, result.to(tl.bfloat16), mask=(i < S)[:, None])


def variants(sm: int, tiles: TileTable) -> list[Variant]:
    from mm2c_plugins.kernels.catalogue import Variant

    found = []
    for row in tiles.get("attention_prefill", []):
        for kind, types, flags in kv_formats(sm):
            for page in PAGES:
                rows, block, warps, stages = row["BM"], row["BN"], row["num_warps"], row["num_stages"]
                found.append(
                    Variant(
                        "attention_prefill",
                        f"attention_prefill.{kind}.page{page}.bm{rows}.bn{block}.w{warps}.s{stages}",
                        {
                            "D": 128,
                            "PAGE": page,
                            "BM": rows,
                            "BN": block,
                            **flags,
                            "PDL": sm >= 90,
                            "DEBUG": False,
                        },
                        types=types,
                        num_warps=warps,
                        num_stages=stages,
                    )
                )
    return found
