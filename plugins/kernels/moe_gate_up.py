"""First product of the grouped experts, with SwiGLU: a tile is up to BM tokens of one expert."""

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
    "x": "*bf16",
    "w13": "{w}",
    "w13_scale": "*fp32",
    "order": "*i32",
    "tile_expert": "*i32",
    "tile_row": "*i32",
    "tile_end": "*i32",
    "h": "*bf16",
    "C": "i32",
    "I": "i32",
    "K": "i32",
    "block_n": "i32",
    "block_k": "i32",
}


@triton.jit
def moe_gate_up(
    x,
    w13,
    w13_scale,
    order,
    tile_expert,
    tile_row,
    tile_end,
    h,
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
    """x bf16[T, C], w13 [E, 2I, C] (gate rows, then up rows) → h bf16[N, I] = silu(gate) · up in sorted order.

    Grid (⌈I / BN⌉, max_tiles); order and tiles as moe_plan writes them. SCALED: w13 is e4m3 (U8: its codes as u8) with
    w13_scale f32[E, 2⌈I / block_n⌉, ⌈C / block_k⌉], one factor a block of block_n × block_k, gate and up divided apart.
    BK, 64 or 128, divides C and block_k, which is 64 or 128; sums in f32.

    Weights are the left operand, tokens the right one: Hopper's matrix unit takes a left operand from registers, where
    e4m3 has just become bf16, and tokens may then be few.
    """
    # taller tiles share an expert's weights in L2
    WEIGHTS_ONCE: tl.constexpr = "evict_first" if BM <= 32 else ""
    tile = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.minimum(n, I - 1)
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
        token = tl.load(order + place, mask=live, other=0) // K
        x_at = x + token.to(tl.int64)[None, :] * C + k[:, None]
        gate_at = w13 + expert.to(tl.int64) * (2 * I * C) + row[:, None] * C + k[None, :]
        up_at = gate_at + I * C
        if SCALED:
            scale_rows = tl.cdiv(I, block_n)
            scale_columns = tl.cdiv(C, block_k)
            gate_scale_at = w13_scale + (expert * (2 * scale_rows) + row // block_n) * scale_columns
            up_scale_at = gate_scale_at + scale_rows * scale_columns
            shift = block_k // BK - 1  # block_k is BK or 2 BK
            gate_scale = tl.load(gate_scale_at)
            up_scale = tl.load(up_scale_at)
        gate = tl.zeros((BN, BM), tl.float32)
        up = tl.zeros((BN, BM), tl.float32)
        for step in range(C // BK):
            # weights before tokens, whose addresses are known later
            gate_w = tl.load(gate_at, eviction_policy=WEIGHTS_ONCE)
            up_w = tl.load(up_at, eviction_policy=WEIGHTS_ONCE)
            tokens = tl.load(x_at, mask=live[None, :], other=0.0)
            if U8:
                gate_w = decode(gate_w)
                up_w = decode(up_w)
            if SCALED:
                # The next step's factors are read a step ahead. e4m3 goes by way of f32, because the direct conversion
                # to bf16 runs at a quarter of the rate.
                following = tl.minimum(step + 1, C // BK - 1) >> shift
                next_gate_scale = tl.load(gate_scale_at + following)
                next_up_scale = tl.load(up_scale_at + following)
                gate += tl.dot(gate_w.to(tl.float32).to(tl.bfloat16), tokens) * gate_scale[:, None]
                up += tl.dot(up_w.to(tl.float32).to(tl.bfloat16), tokens) * up_scale[:, None]
                gate_scale = next_gate_scale
                up_scale = next_up_scale
            else:
                gate = tl.dot(gate_w, tokens, gate)
                up = tl.dot(up_w, tokens, up)
            x_at += BK
            gate_at += BK
            up_at += BK
        active = tl.trans(gate / (1.0 + tl.exp(-gate)) * up)
        h_at = h + place.to(tl.int64)[:, None] * I + n[None, :]
        tl.store(h_at, active.to(tl.bfloat16), mask=live[:, None] & (n[None, :] < I))


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return weight_variants("moe_gate_up", sm, tiles.get("moe_grouped", []), ("C", "I"), halve_bk=True)
