"""Adds up the shares of a product whose columns were split over programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from mm2c_plugins.kernels.catalogue import Variant

PARAMETERS = {"part": "*fp32", "y": "*bf16", "count": "i32", "splits": "i32"}


@triton.jit
def split_sum(part, y, count, splits, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """y bf16[count] = part f32[splits, count] summed over its first axis, in f32 and in order. Grid (⌈count/BLOCK⌉)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(part + at, mask=inside, other=0.0)
        part += count
    tl.store(y + at, total.to(tl.bfloat16), mask=inside)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return [
        Variant(
            kernel="split_sum",
            name=f"split_sum.block{row['BLOCK']}.w{row['num_warps']}",
            constants={"BLOCK": int(row["BLOCK"]), "PDL": sm >= 90},
            num_warps=int(row["num_warps"]),
            num_stages=int(row["num_stages"]),
            multiples=("count",),
        )
        for row in tiles.get("split_sum", [])
    ]
