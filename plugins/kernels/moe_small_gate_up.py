"""First product of the experts of very few tokens: one matrix-vector product for each pair of token and slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mm2c_plugins.kernels.catalogue import Variant
from mm2c_plugins.kernels.e4m3 import decode
from mm2c_plugins.kernels.moe_choose import choose, scores_and_keys, shares
from mm2c_plugins.kernels.moe_variants import weight_variants

PARAMETERS = {
    "x": "*bf16",
    "logits": "*fp32",
    "bias": "*fp32",
    "w13": "{w}",
    "w13_scale": "*fp32",
    "weights": "*fp32",
    "ids": "*i32",
    "h": "*bf16",
    "C": "i32",
    "I": "i32",
    "E_total": "i32",
    "K": "i32",
    "first_expert": "i32",
    "E_local": "i32",
    "block_n": "i32",
    "block_k": "i32",
}


@triton.jit
def moe_small_gate_up(
    x,
    logits,
    bias,
    w13,
    w13_scale,
    weights,
    ids,
    h,
    C,
    I,  # noqa: E741
    E_total,
    K,
    first_expert,
    E_local,
    block_n,
    block_k,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EP: tl.constexpr,
    ROUTE: tl.constexpr,
    SCALED: tl.constexpr,
    U8: tl.constexpr,
    PDL: tl.constexpr,
):
    """x bf16[T, C], w13 [E, 2I, C] → h bf16[T·K, I] = silu(gate) · up at the pair token·K + slot. Grid (⌈I / BN⌉, T·K).

    ROUTE: logits f32[T, E_total] and bias are routed as in moe_routing by every program for itself, and the first
    program of a pair writes its weights and ids f32/i32[T, K]; else ids are read. Pairs whose expert is not one of
    first_expert … first_expert + E_local - 1 write no h. Scales as in moe_gate_up; BN divides 64, and 64 divides C.
    """
    GROUP: tl.constexpr = 16  # products summed inside a thread before the scale is applied
    pair = tl.program_id(1)
    token = pair // K
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    group = tl.arange(0, BK // GROUP)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if ROUTE:
        column = tl.arange(0, EP)
        inside = column < E_total
        logit = tl.load(logits + token * E_total + column, mask=inside, other=0.0)
        scores, keys = scores_and_keys(logit, tl.load(bias + column, mask=inside, other=0.0), inside)
        place, chosen = choose(keys, column, K, EP, 0)
        share = shares(scores, chosen, 0)
        own = chosen & (place == pair % K)
        expert = tl.sum(tl.where(own, column, 0), 0)
        if tl.program_id(0) == 0:
            tl.store(weights + token * K + place, share, mask=own)
            tl.store(ids + token * K + place, column, mask=own)
    else:
        expert = tl.load(ids + pair)
    local = expert - first_expert
    if (local >= 0) & (local < E_local):
        gate_at = w13 + local.to(tl.int64) * (2 * I * C) + n[:, None] * C + k[None, :]
        up_at = gate_at + I * C
        x_at = x + token.to(tl.int64) * C + k
        gate = tl.zeros((BN, BK // GROUP), tl.float32)
        up = tl.zeros((BN, BK // GROUP), tl.float32)
        if SCALED:
            scale_rows = tl.cdiv(I, block_n)
            scale_columns = tl.cdiv(C, block_k)
            row = local * (2 * scale_rows) + tl.program_id(0) * BN // block_n
            gate_scale_at = w13_scale + row * scale_columns
            up_scale_at = gate_scale_at + scale_rows * scale_columns
            shift = 5 + block_k // 64  # block_k is 64 or 128
        for base in range(0, C, BK):
            inside_k = k < C - base
            known = (n[:, None] < I) & inside_k[None, :]
            values = tl.load(x_at + base, mask=inside_k, other=0.0).to(tl.float32)
            gate_w = tl.load(gate_at + base, mask=known, other=0.0, eviction_policy="evict_first")
            up_w = tl.load(up_at + base, mask=known, other=0.0, eviction_policy="evict_first")
            if U8:
                gate_w = decode(gate_w)
                up_w = decode(up_w)
            gate_part = tl.reshape(gate_w.to(tl.float32) * values[None, :], (BN, BK // GROUP, GROUP))
            up_part = tl.reshape(up_w.to(tl.float32) * values[None, :], (BN, BK // GROUP, GROUP))
            gate_sum = tl.sum(gate_part, 2)
            up_sum = tl.sum(up_part, 2)
            if SCALED:
                column_k = base + group * GROUP
                gate_scale = tl.load(gate_scale_at + (column_k >> shift), mask=column_k < C, other=0.0)
                up_scale = tl.load(up_scale_at + (column_k >> shift), mask=column_k < C, other=0.0)
                gate_sum *= gate_scale[None, :]
                up_sum *= up_scale[None, :]
            gate += gate_sum
            up += up_sum
        gate_total = tl.sum(gate, 1)
        up_total = tl.sum(up, 1)
        active = gate_total / (1.0 + tl.exp(-gate_total)) * up_total
        tl.store(h + pair.to(tl.int64) * I + n, active.to(tl.bfloat16), mask=n < I)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    fixed = [{"EP": 256, "ROUTE": route} for route in (False, True)]
    return weight_variants("moe_small_gate_up", sm, tiles.get("moe_small", []), ("C", "I"), fixed)
