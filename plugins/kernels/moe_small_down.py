"""Second product of the experts of very few tokens, times the routing weights, summed over the slots."""

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
    "weights": "*fp32",
    "ids": "*i32",
    "out": "*bf16",
    "C": "i32",
    "I": "i32",
    "K": "i32",
    "first_expert": "i32",
    "E_local": "i32",
    "block_n": "i32",
    "block_k": "i32",
}


@triton.jit
def moe_small_down(
    h,
    w2,
    w2_scale,
    weights,
    ids,
    out,
    C,
    I,  # noqa: E741
    K,
    first_expert,
    E_local,
    block_n,
    block_k,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SCALED: tl.constexpr,
    U8: tl.constexpr,
    PDL: tl.constexpr,
):
    """h bf16[T·K, I] at its pair, w2 [E, C, I], weights f32[T, K], ids i32[T, K] → out bf16[T, C]. Grid (⌈C / BN⌉, T).

    out = Σ over the token's slots of weight · w2 · h, in f32; slots whose expert is not one of first_expert …
    first_expert + E_local - 1 are left out. Scales as in moe_down; BN divides 64, and 64 divides I.
    """
    GROUP: tl.constexpr = 16  # products summed inside a thread before the scale is applied
    SLOTS: tl.constexpr = 4  # slots handled at once, for many bytes in flight: an expert's rows are short
    COLUMNS: tl.constexpr = BK // 2
    token = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, COLUMNS)
    group = tl.arange(0, COLUMNS // GROUP)
    inside_n = (n < C)[None, :, None]
    total = tl.zeros((SLOTS, BN, COLUMNS // GROUP), tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if SCALED:
        scale_rows = tl.cdiv(C, block_n)
        scale_columns = tl.cdiv(I, block_k)
        scale_row = tl.program_id(0) * BN // block_n
        shift = 5 + block_k // 64  # block_k is 64 or 128
    for first in range(0, K, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        local = tl.load(ids + token * K + slot, mask=slot < K, other=-1) - first_expert
        mine = (slot < K) & (local >= 0) & (local < E_local)
        share = tl.load(weights + token * K + slot, mask=mine, other=0.0)
        local = tl.where(mine, local, 0)
        h_at = h + (token * K + slot).to(tl.int64)[:, None] * I + k[None, :]
        w_at = w2 + local.to(tl.int64)[:, None, None] * C * I + n[None, :, None] * I + k[None, None, :]
        for base in range(0, I, COLUMNS):
            inside = mine[:, None] & (k < I - base)[None, :]
            active = tl.load(h_at + base, mask=inside, other=0.0).to(tl.float32)
            known = inside[:, None, :] & inside_n
            w = tl.load(w_at + base, mask=known, other=0.0, eviction_policy="evict_first")
            if U8:
                w = decode(w)
            product = w.to(tl.float32) * active[:, None, :]
            part = tl.sum(tl.reshape(product, (SLOTS, BN, COLUMNS // GROUP, GROUP)), 3)
            factor = share[:, None]
            if SCALED:
                column = base + group * GROUP
                at = (
                    w2_scale
                    + ((local * scale_rows + scale_row) * scale_columns)[:, None]
                    + (column >> shift)[None, :]
                )
                factor = factor * tl.load(at, mask=mine[:, None] & (column < I)[None, :], other=0.0)
            total += part * factor[:, None, :]
    result = tl.sum(tl.sum(total, 2), 0)
    tl.store(out + token.to(tl.int64) * C + n, result.to(tl.bfloat16), mask=n < C)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return weight_variants("moe_small_down", sm, tiles.get("moe_small", []), ("C", "I"))
