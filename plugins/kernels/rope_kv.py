"""The first half of M2PagedAttention: norm of q and k, partial rotation, and k and v written into their pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mm2c_plugins.kernels.e4m3 import encode

if TYPE_CHECKING:
    from mm2c_plugins.kernels.catalogue import TileTable, Variant

PARAMETERS = {
    "q": "*bf16",
    "k": "*bf16",
    "v": "*bf16",
    "s": "*fp32",
    "q_weight": "*bf16",
    "k_weight": "*bf16",
    "cos": "*fp32",
    "sin": "*fp32",
    "past_len": "*i32",
    "new_len": "*i32",
    "block_table": "*i32",
    "q_out": "*bf16",
    "k_cache": "*{kv}",
    "v_cache": "*{kv}",
    "S": "i32",
    "M": "i32",
    "P": "i32",
    "pages": "i32",
    "HQ": "i32",
    "HK": "i32",
    "q_stride": "i32",
    "k_stride": "i32",
    "v_stride": "i32",
    "q_total": "fp32",
    "k_total": "fp32",
    "eps": "fp32",
}


@triton.jit
def _normed(x, weight, columns, mask, inverse):
    """bf16(weight · bf16(x · inverse)) as f32, at the given columns of one token."""
    value = tl.load(x + columns, mask=mask, other=0.0).to(tl.float32) * inverse
    scaled = value.to(tl.bfloat16).to(tl.float32) * tl.load(weight + columns, mask=mask, other=0.0).to(
        tl.float32
    )
    return scaled.to(tl.bfloat16).to(tl.float32)


@triton.jit
def _rotated(x, weight, square_sum, total, eps, cosine, sine, head, mask, D: tl.constexpr, R: tl.constexpr):
    """Heads ``head`` of one token, normed and rotated: f32 [HB, R/2], [HB, R/2] and [HB, D-R]."""
    half = tl.arange(0, R // 2)[None, :]
    rest = tl.arange(0, D - R)[None, :]
    inverse = tl.rsqrt(tl.load(square_sum) / total + eps)
    first = _normed(x, weight, head * D + half, mask, inverse)
    second = _normed(x, weight, head * D + R // 2 + half, mask, inverse)
    last = _normed(x, weight, head * D + R + rest, mask, inverse)
    return first * cosine - second * sine, second * cosine + first * sine, last


@triton.jit
def _store(cache, value, mask, KV8: tl.constexpr, U8: tl.constexpr):
    """f32 value, rounded to bf16, into a cache of bf16 or e4m3."""
    rounded = value.to(tl.bfloat16)
    if U8:
        tl.store(cache, encode(rounded.to(tl.float32)), mask=mask)
    elif KV8:
        tl.store(cache, rounded.to(tl.float32).to(tl.float8e4nv), mask=mask)
    else:
        tl.store(cache, rounded, mask=mask)


@triton.jit
def rope_kv(
    q,
    k,
    v,
    s,
    q_weight,
    k_weight,
    cos,
    sin,
    past_len,
    new_len,
    block_table,
    q_out,
    k_cache,
    v_cache,
    S,
    M,
    P,
    pages,
    HQ,
    HK,
    q_stride,
    k_stride,
    v_stride,
    q_total,
    k_total,
    eps,
    D: tl.constexpr,
    R: tl.constexpr,
    PAGE: tl.constexpr,
    HB: tl.constexpr,
    KV8: tl.constexpr,
    U8: tl.constexpr,
    PDL: tl.constexpr,
    DEBUG: tl.constexpr,
):
    """Token t = b·S + i stands at position past_len[b] + i; with i >= new_len[b] it is padding: its q_out is zero
    and nothing of it is written to the caches.

    q bf16 [T, HQ·D], k and v bf16 [T, HK·D] with rows *_stride elements (a multiple of 16) apart; s f32 [T, 2] the
    sums of squares of q and k over all ranks, q_total and k_total the widths they go over; q_weight bf16 [HQ·D],
    k_weight bf16 [HK·D]; cos and sin f32 [P, R/2]; past_len, new_len i32 [B]; block_table i32 [B, M]; q_out bf16
    [T, HQ·D]; caches [pages, PAGE, HK, D] in bf16, or e4m3 with KV8 (as bytes, converted by bit arithmetic, with U8).

    x · rsqrt(s / total + eps) is rounded to bf16 before the weight and after it; the rotation (halves of the first R
    numbers of a head, NeoX order) is computed in f32 and rounded once. A page number outside [0, pages), or a
    position past the table, is never written; with DEBUG it is an assertion.

    One program does HB consecutive heads of a token: first blocks of q heads, then of k heads, then of v heads.
    grid: (T, ceil(HQ / HB) + 2 · ceil(HK / HB)).
    """
    t = tl.program_id(0)
    block = tl.program_id(1)
    q_blocks = tl.cdiv(HQ, HB)
    k_blocks = tl.cdiv(HK, HB)
    b = t // S
    i = t - b * S
    token = t.to(tl.int64)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()

    real = i < tl.load(new_len + b)
    position = tl.load(past_len + b) + i
    angle = tl.maximum(tl.minimum(position, P - 1), 0).to(tl.int64) * (R // 2) + tl.arange(0, R // 2)[None, :]
    half = tl.arange(0, R // 2)[None, :]
    rest = tl.arange(0, D - R)[None, :]
    if block < q_blocks:
        head = block * HB + tl.arange(0, HB)[:, None]
        mask = (head < HQ) & real
        cosine = tl.load(cos + angle)
        sine = tl.load(sin + angle)
        first, second, last = _rotated(
            q + token * q_stride, q_weight, s + t * 2, q_total, eps, cosine, sine, head, mask, D, R
        )
        into = q_out + token * (HQ * D) + head * D
        inside = head < HQ
        tl.store(into + half, tl.where(real, first, 0.0).to(tl.bfloat16), mask=inside)
        tl.store(into + R // 2 + half, tl.where(real, second, 0.0).to(tl.bfloat16), mask=inside)
        tl.store(into + R + rest, tl.where(real, last, 0.0).to(tl.bfloat16), mask=inside)
    else:
        entry = position // PAGE
        known = real & (position >= 0) & (entry < M)
        page = tl.load(block_table + b.to(tl.int64) * M + entry, mask=known, other=-1)
        if DEBUG:
            tl.device_assert(
                (page >= 0) & (page < pages) | (i >= tl.load(new_len + b)), "page number out of range"
            )
        slot = (page.to(tl.int64) * PAGE + position % PAGE) * HK
        k_block = block - q_blocks
        if k_block < k_blocks:
            head = k_block * HB + tl.arange(0, HB)[:, None]
            mask = (head < HK) & known & (page >= 0) & (page < pages)
            cosine = tl.load(cos + angle)
            sine = tl.load(sin + angle)
            first, second, last = _rotated(
                k + token * k_stride, k_weight, s + t * 2 + 1, k_total, eps, cosine, sine, head, mask, D, R
            )
            into = k_cache + slot * D + head * D
            _store(into + half, first, mask, KV8, U8)
            _store(into + R // 2 + half, second, mask, KV8, U8)
            _store(into + R + rest, last, mask, KV8, U8)
        else:
            head = (k_block - k_blocks) * HB + tl.arange(0, HB)[:, None]
            column = head * D + tl.arange(0, D)[None, :]
            mask = (head < HK) & known & (page >= 0) & (page < pages)
            value = tl.load(v + token * v_stride + column, mask=mask, other=0.0)
            _store(v_cache + slot * D + column, value.to(tl.float32), mask, KV8, U8)


def variants(sm: int, tiles: TileTable) -> list[Variant]:
    from mm2c_plugins.kernels.catalogue import Variant
    from mm2c_plugins.kernels.paged_kv import PAGES, kv_formats

    found = []
    for row in tiles.get("rope_kv", []):
        for kind, types, flags in kv_formats(sm):
            for page in PAGES:
                heads, warps = row["HB"], row["num_warps"]
                found.append(
                    Variant(
                        "rope_kv",
                        f"rope_kv.{kind}.page{page}.hb{heads}.w{warps}",
                        {
                            "D": 128,
                            "R": 64,
                            "PAGE": page,
                            "HB": heads,
                            **flags,
                            "PDL": sm >= 90,
                            "DEBUG": False,
                        },
                        types=types,
                        num_warps=warps,
                        num_stages=row["num_stages"],
                        multiples=("q_stride", "k_stride", "v_stride"),
                    )
                )
    return found
