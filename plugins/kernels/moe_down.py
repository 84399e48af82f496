"""Second product of the grouped experts, times the routing weight; rows go back to their pair's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mm2c_plugins.kernels.catalogue import Variant
from mm2c_plugins.kernels.e4m3 import decode
from mm2c_plugins.kernels.moe_variants import weight_variants

PARAMETERS = {
    "h": "*bf16",
    "w2": "{w}",
    "w2_scale": "*fp32",
    "order": "*i32",
    "weights": "*fp32",
    "tile_expert": "*i32",
    "tile_row": "*i32",
    "tile_end": "*i32",
    "y": "*bf16",
    "C": "i32",
    "I": "i32",
    "K": "i32",
    "block_n": "i32",
    "block_k": "i32",
}


@triton.jit
def moe_down(
    h,
    w2,
    w2_scale,
    order,
    weights,
    tile_expert,
    tile_row,
    tile_end,
    y,
    C,
    I,  # noqa: E741
    K,
    block_n,
    block_k,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SCALED: tl.constexpr,
    U8: tl.constexpr,
    PDL: tl.constexpr,
):
    """h bf16[N, I] in sorted order, w2 [E, C, I] → y bf16[N, C] at the pair's place: weights[pair] · w2 · h.

    Grid (⌈C / BN⌉, max_tiles); order and tiles as moe_plan writes them; weights f32[N]. SCALED: w2 is e4m3 (U8: its
    codes as u8) with w2_scale f32[E, ⌈C / block_n⌉, ⌈I / block_k⌉]. BK divides I and block_k; sums in f32.
    Rows of y whose expert is not local are not written.
    """
    # taller tiles share an expert's weights in L2
    WEIGHTS_ONCE: tl.constexpr = "evict_first" if BM <= 32 else ""
    tile = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.minimum(n, C - 1)
    k = tl.arange(0, BK)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    expert = tl.load(tile_expert + tile)
    first = tl.load(tile_row + tile)
    end = tl.load(tile_end + tile)
    if expert >= 0:
        place = first + tl.arange(0, BM)
        live = place < end
        if BM <= 32:  # early, where registers allow
            pair = tl.load(order + place, mask=live, other=0)
        h_at = h + place.to(tl.int64)[None, :] * I + k[:, None]
        w_at = w2 + expert.to(tl.int64) * C * I + row[:, None] * I + k[None, :]
        if SCALED:
            scale_columns = tl.cdiv(I, block_k)
            scale_at = w2_scale + (expert * tl.cdiv(C, block_n) + row // block_n) * scale_columns
            shift = block_k // BK - 1  # block_k is BK or 2 BK
            scale = tl.load(scale_at)
        total = tl.zeros((BN, BM), tl.float32)
        for step in range(I // BK):
            w = tl.load(w_at, eviction_policy=WEIGHTS_ONCE)
            active = tl.load(h_at, mask=live[None, :], other=0.0)
            if U8:
                w = decode(w)
            if SCALED:
                next_scale = tl.load(scale_at + (tl.minimum(step + 1, I // BK - 1) >> shift))
                total += tl.dot(w.to(tl.float32).to(tl.bfloat16), active) * scale[:, None]
                scale = next_scale
            else:
                total = tl.dot(w, active, total)
            h_at += BK
            w_at += BK
        if BM > 32:
            pair = tl.load(order + place, mask=live, other=0)
        share = tl.load(weights + pair, mask=live, other=0.0)
        y_at = y + pair.to(tl.int64)[:, None] * C + n[None, :]
        tl.store(
            y_at, (tl.trans(total) * share[:, None]).to(tl.bfloat16), mask=live[:, None] & (n[None, :] < C)
        )


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return weight_variants("moe_down", sm, tiles.get("moe_down", []), ("C", "I"), halve_bk=True)
