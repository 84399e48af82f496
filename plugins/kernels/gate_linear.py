"""Router logits: a small linear from bf16 activations to f32 (M2RouterLinear).

The result decides which experts run, so nothing is lost on the way: products are exact and sums f32. A f32 weight is
split into three bf16 parts, which together hold its 24 bits, for the tensor cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from mm2c_plugins.kernels.catalogue import Variant

PARAMETERS = {"x": "*bf16", "w": "{w}", "logits": "*fp32", "T": "i32", "C": "i32", "E": "i32"}


@triton.jit
def gate_linear(
    x,
    w,
    logits,
    T,
    C,
    E,
    BM: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
    SLICES: tl.constexpr,
    GEMV: tl.constexpr,
    F32: tl.constexpr,
    PDL: tl.constexpr,
):
    """logits f32[T, E] = x bf16[T, C] · w[E, C]ᵀ with w bf16, or f32 with F32. Grid (⌈E/BE⌉, ⌈T/BM⌉); C and E any.

    GEMV: one token and BE experts a program by multiply-adds, BK columns a step (BM is 1). SLICES > 1: a step takes
    SLICES blocks of BK columns, one for each group of warps, as a batched dot.
    """
    re = tl.program_id(0) * BE + tl.arange(0, BE)
    rm = tl.program_id(1) * BM + tl.arange(0, BM)
    inside = rm < T
    row = tl.minimum(re, E - 1)  # rows past the end repeat the last one and are not stored
    rk = tl.arange(0, BK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()

    if GEMV:
        xp = x + tl.program_id(1).to(tl.int64) * C + rk
        wp = w + row[:, None] * C + rk[None, :]
        products = tl.zeros((BE, BK), tl.float32)
        for k in range(0, C, BK):
            a = tl.load(xp + k, mask=rk < C - k, other=0.0).to(tl.float32)
            b = tl.load(wp + k, mask=(rk < C - k)[None, :], other=0.0).to(tl.float32)
            products += a[None, :] * b
        acc = tl.sum(products, axis=1)[None, :]
    elif SLICES > 1:
        at = tl.arange(0, SLICES)[:, None, None] * BK
        xp = x + rm.to(tl.int64)[None, :, None] * C + at + rk[None, None, :]
        wp = w + row[None, None, :] * C + at + rk[None, :, None]
        acc3 = tl.zeros((SLICES, BM, BE), tl.float32)
        for k in range(0, C, SLICES * BK):
            a = tl.load(xp + k, mask=(at + rk[None, None, :] < C - k) & inside[None, :, None], other=0.0)
            b = tl.load(wp + k, mask=at + rk[None, :, None] < C - k, other=0.0)
            acc3 = _product(a, b, acc3, F32)
        acc = tl.sum(acc3, axis=0)
    else:
        xp = x + rm.to(tl.int64)[:, None] * C + rk[None, :]
        wp = w + row[None, :] * C + rk[:, None]
        acc = tl.zeros((BM, BE), tl.float32)
        for k in range(0, C, BK):
            a = tl.load(xp + k, mask=(rk < C - k)[None, :] & inside[:, None], other=0.0)
            b = tl.load(wp + k, mask=(rk < C - k)[:, None], other=0.0)
            acc = _product(a, b, acc, F32)

    out = rm.to(tl.int64)[:, None] * E + re[None, :]
    tl.store(logits + out, acc, mask=inside[:, None] & (re < E)[None, :])


@triton.jit
def _product(a, b, acc, F32: tl.constexpr):
    """acc + a · b, with b f32 taken apart so that each part is exact in bf16."""
    if F32:
        high = b.to(tl.bfloat16)
        rest = b - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        acc = tl.dot(a, low, acc)
        acc = tl.dot(a, middle, acc)
        acc = tl.dot(a, high, acc)
    else:
        acc = tl.dot(a, b, acc)
    return acc


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return [_variant(sm, row, f32) for row in tiles.get("gate_linear", []) for f32 in (False, True)]


def _variant(sm: int, row: dict[str, Any], f32: bool) -> Variant:
    shape = {name: int(row[name]) for name in ("BM", "BE", "BK", "SLICES", "GEMV")}
    warps, stages = int(row["num_warps"]), int(row["num_stages"])
    tile = ".".join(f"{name.lower()}{value}" for name, value in shape.items())
    return Variant(
        kernel="gate_linear",
        name=f"gate_linear.{'f32' if f32 else 'bf16'}.{tile}.w{warps}.s{stages}",
        constants={**shape, "F32": f32, "PDL": sm >= 90},
        types={"w": "*fp32" if f32 else "*bf16"},
        num_warps=warps,
        num_stages=stages,
        multiples=("C",),
    )
