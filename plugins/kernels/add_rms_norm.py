"""Residual sum and RMS norm of one row (M2AddRmsNorm)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from mm2c_plugins.kernels.catalogue import Variant

PARAMETERS = {
    "x": "*bf16",
    "residual": "*bf16",
    "weight": "*bf16",
    "y": "*bf16",
    "total": "*bf16",
    "C": "i32",
    "eps": "fp32",
}


@triton.jit
def add_rms_norm(
    x,
    residual,
    weight,
    y,
    total,
    C,
    eps,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):
    """total bf16[T, C] = x + residual; y bf16[T, C] = weight · bf16(total · rsqrt(mean(total²) + eps)). Grid (T).

    Roundings as transformers' RMSNorm after a bf16 addition: the mean is of the rounded total, in f32, the normed
    value is rounded before it meets the weight. C ≤ BLOCK. Without RESIDUAL total is x and is not written.
    """
    c = tl.arange(0, BLOCK)
    inside = c < C
    at = tl.program_id(0).to(tl.int64) * C + c
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(tl.bfloat16)
        tl.store(total + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    mean = tl.sum(value * value, axis=0) / C
    normed = (value * (1.0 / tl.sqrt_rn(mean + eps))).to(tl.bfloat16).to(tl.float32)
    gain = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, (gain * normed).to(tl.bfloat16), mask=inside)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return [
        Variant(
            kernel="add_rms_norm",
            name=f"add_rms_norm.block{row['BLOCK']}.{'residual' if residual else 'alone'}.w{row['num_warps']}",
            constants={"BLOCK": int(row["BLOCK"]), "RESIDUAL": residual, "PDL": sm >= 90},
            num_warps=int(row["num_warps"]),
            num_stages=int(row["num_stages"]),
            multiples=("C",),
        )
        for row in tiles.get("add_rms_norm", [])
        for residual in (True, False)
    ]
