"""Sum of the K results of every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mm2c_plugins.kernels.catalogue import Variant
from mm2c_plugins.kernels.moe_variants import plain_variants

PARAMETERS = {
    "y": "*bf16",
    "ids": "*i32",
    "out": "*bf16",
    "C": "i32",
    "K": "i32",
    "first_expert": "i32",
    "E_local": "i32",
}


@triton.jit
def moe_combine(
    y, ids, out, C, K, first_expert, E_local, BC: tl.constexpr, SLOTS: tl.constexpr, PDL: tl.constexpr
):
    """y bf16[T·K, C], ids i32[T, K] → out bf16[T, C] = Σ over slots, in f32. Grid (⌈C / BC⌉, T); K <= SLOTS.

    Slots whose expert is not one of first_expert … first_expert + E_local - 1 are skipped: their y was never written.
    """
    pair = tl.program_id(1) * K + tl.arange(0, SLOTS)
    slot = tl.arange(0, SLOTS)
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    local = tl.load(ids + pair, mask=slot < K, other=-1) - first_expert
    mine = (slot < K) & (local >= 0) & (local < E_local)
    y_at = y + pair.to(tl.int64)[:, None] * C + c[None, :]
    rows = tl.load(y_at, mask=mine[:, None] & (c[None, :] < C), other=0.0)
    total = tl.sum(rows.to(tl.float32), 0)
    tl.store(out + tl.program_id(1).to(tl.int64) * C + c, total.to(tl.bfloat16), mask=c < C)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return plain_variants(
        "moe_combine", tiles.get("moe_combine", []), [{"SLOTS": 16, "PDL": sm >= 90}], ("C",)
    )
