"""Joins the splits of attention_decode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

if TYPE_CHECKING:
    from mm2c_plugins.kernels.catalogue import TileTable, Variant

PARAMETERS = {"part": "*fp32", "lse": "*fp32", "out": "*bf16", "splits": "i32"}


@triton.jit
def attention_merge(part, lse, out, splits, D: tl.constexpr, SP: tl.constexpr, PDL: tl.constexpr):
    """out[r] = Σ part[r, n] · w[n], w = 2^lse[r, n] / Σ 2^lse[r], over the splits n of one row and head r.

    part f32 [B·HQ, splits, D], lse f32 [B·HQ, splits] (base 2; -inf: that part is not read), out bf16 [B·HQ, D];
    splits <= SP. Where every lse is -inf, out is zero.
    grid: (B·HQ).
    """
    r = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, SP)
    d = tl.arange(0, D)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    logs = tl.load(lse + r * splits + n, mask=n < splits, other=float("-inf"))
    filled = logs != float("-inf")
    high = tl.max(logs, axis=0)
    weight = tl.exp2(logs - tl.where(high == float("-inf"), 0.0, high))
    total = tl.sum(weight, axis=0)
    weight = weight / tl.where(total == 0.0, 1.0, total)
    rows = tl.load(part + ((r * splits + n) * D)[:, None] + d[None, :], mask=filled[:, None], other=0.0)
    tl.store(out + r * D + d, tl.sum(rows * weight[:, None], axis=0).to(tl.bfloat16))


def variants(sm: int, tiles: TileTable) -> list[Variant]:
    from mm2c_plugins.kernels.catalogue import Variant

    return [
        Variant(
            "attention_merge",
            f"attention_merge.sp{row['SP']}.w{row['num_warps']}",
            {"D": 128, "SP": row["SP"], "PDL": sm >= 90},
            num_warps=row["num_warps"],
            num_stages=row["num_stages"],
        )
        for row in tiles.get("attention_merge", [])
    ]
