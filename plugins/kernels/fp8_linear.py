"""Linear with a block-scaled e4m3 weight, activations in bf16 (M2Fp8Linear).

Three forms of the same product, by the constants of a tile row:

* GEMV > 0: multiply-adds in f32, for a few tokens. A step reads GEMV blocks of BK columns of BN rows in one load
  each of 16 bytes a thread, so that the programs of a small matrix have all of it in flight at once.
* SLICES > 1: tensor cores, up to 16 tokens a tile. A step takes SLICES blocks of BK columns, one for each group of
  warps, as a batched dot: the chain of dependent steps is SLICES times shorter than a warp grid over N alone gives.
* else: tensor cores, one block of BK columns a step.

Sums over BK columns of one scale block are made in f32 and scaled after it, so weights are used exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from mm2c_plugins.kernels.catalogue import Variant
from mm2c_plugins.kernels.e4m3 import decode

PARAMETERS = {
    "x": "*bf16",
    "w": "{w}",
    "scale": "*fp32",
    "y": "*bf16",
    "part": "*fp32",
    "T": "i32",
    "N": "i32",
    "K": "i32",
    "block_n": "i32",
    "block_k": "i32",
}


@triton.jit
def fp8_linear(
    x,
    w,
    scale,
    y,
    part,
    T,
    N,
    K,
    block_n,
    block_k,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    SLICES: tl.constexpr,
    GEMV: tl.constexpr,
    SWAP: tl.constexpr,
    U8: tl.constexpr,
    PDL: tl.constexpr,
):
    """y bf16[T, N] = x bf16[T, K] · (w e4m3[N, K] × scale f32[⌈N/block_n⌉, ⌈K/block_k⌉])ᵀ.

    Grid (⌈N/BN⌉, ⌈T/BM⌉, SPLIT). With SPLIT > 1 program z of the last axis sums its share of the columns into
    part f32[SPLIT, T, N], which ``split_sum`` adds up; y is not touched. K and block_k are multiples of BK,
    block_n of 64; N is any. BN ≤ 128, with SLICES or GEMV ≤ 64; BM is 1, 2 or 4 with GEMV.
    """
    rn = tl.program_id(0) * BN + tl.arange(0, BN)
    rm = tl.program_id(1) * BM + tl.arange(0, BM)
    z = tl.program_id(2)
    steps = K // BK
    first = steps * z // SPLIT
    last = steps * (z + 1) // SPLIT
    inside = rm < T
    # Rows past the end repeat the last one: unmasked loads; their results are not stored.
    row = tl.minimum(rn, N - 1)
    scales = tl.cdiv(K, block_k)
    # A tile lies in one row of scale blocks, or in two if it is 128 wide.
    low = scale + (tl.program_id(0) * BN // block_n) * scales
    high = scale + (tl.minimum(tl.program_id(0) * BN + 64, N - 1) // block_n) * scales
    upper = tl.arange(0, BN) >= 64
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()

    if GEMV > 0:
        acc = _matrix_vector(x, w, low, T, N, K, block_k, first, last, BM, BN, BK, GEMV, U8)
    elif SLICES > 1:
        ks = tl.arange(0, SLICES)
        rk = tl.arange(0, BK)
        at = ks[:, None, None] * BK
        xp = x + rm.to(tl.int64)[None, :, None] * K + at + rk[None, None, :]
        wp = w + row.to(tl.int64)[None, None, :] * K + at + rk[None, :, None]
        acc3 = tl.zeros((SLICES, BM, BN), tl.float32)
        for step in range(first, last, SLICES):
            live = step + ks < last
            a = tl.load(xp + step * BK, mask=live[:, None, None] & inside[None, :, None], other=0.0)
            b = tl.load(wp + step * BK, mask=live[:, None, None], other=0 if U8 else 0.0)
            s = tl.load(low + (step + ks) * BK // block_k, mask=live, other=0.0)
            b = decode(b) if U8 else b.to(tl.float32).to(tl.bfloat16)
            acc3 += tl.dot(a, b) * s[:, None, None]
        acc = tl.sum(acc3, axis=0)
    elif SWAP:
        rk = tl.arange(0, BK)
        xp = x + rm.to(tl.int64)[None, :] * K + rk[:, None]
        wp = w + row.to(tl.int64)[:, None] * K + rk[None, :]
        turned = tl.zeros((BN, BM), tl.float32)
        for step in range(first, last):
            b = tl.load(wp + step * BK)
            a = tl.load(xp + step * BK, mask=inside[None, :], other=0.0)
            b = decode(b) if U8 else b.to(tl.float32).to(tl.bfloat16)
            turned += tl.dot(b, a) * _scale(low, high, step * BK // block_k, upper[:, None], BN)
        acc = tl.trans(turned)
    else:
        rk = tl.arange(0, BK)
        xp = x + rm.to(tl.int64)[:, None] * K + rk[None, :]
        wp = w + row.to(tl.int64)[None, :] * K + rk[:, None]
        acc = tl.zeros((BM, BN), tl.float32)
        for step in range(first, last):
            a = tl.load(xp + step * BK, mask=inside[:, None], other=0.0)
            b = tl.load(wp + step * BK)
            b = decode(b) if U8 else b.to(tl.float32).to(tl.bfloat16)
            acc += tl.dot(a, b) * _scale(low, high, step * BK // block_k, upper[None, :], BN)

    out = rm.to(tl.int64)[:, None] * N + rn[None, :]
    keep = inside[:, None] & (rn < N)[None, :]
    if SPLIT > 1:
        tl.store(part + z.to(tl.int64) * T * N + out, acc, mask=keep)
    else:
        tl.store(y + out, acc.to(tl.bfloat16), mask=keep)


@triton.jit
def _scale(low, high, block, upper, BN: tl.constexpr):
    """The scale of a column block: a number, or one for each row of a tile that lies in two rows of blocks."""
    s = tl.load(low + block)
    if BN > 64:
        s = tl.where(upper, tl.load(high + block), s)
    return s


@triton.jit
def _matrix_vector(
    x,
    w,
    scale,
    T,
    N,
    K,
    block_k,
    first,
    last,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GEMV: tl.constexpr,
    U8: tl.constexpr,
):
    """f32[BM, BN] of this program's columns, with a sum for each of the BM tokens; ``scale`` is the tile's row."""
    CHUNKS: tl.constexpr = GEMV * BK // 16  # 16 codes are one thread's load
    rn = tl.minimum(tl.program_id(0) * BN + tl.arange(0, BN), N - 1)
    token = tl.program_id(1) * BM
    chunk = tl.arange(0, CHUNKS)
    column = chunk[:, None] * 16 + tl.arange(0, 16)[None, :]
    wp = w + rn.to(tl.int64)[:, None, None] * K + column[None, :, :]
    acc0 = tl.zeros((BN, CHUNKS), tl.float32)
    acc1 = acc0
    acc2 = acc0
    acc3 = acc0
    for step in range(first, last, GEMV):
        block = step + chunk * 16 // BK
        live = block < last
        b = tl.load(wp + step * BK, mask=live[None, :, None], other=0 if U8 else 0.0)
        s = tl.load(scale + block * BK // block_k, mask=live, other=0.0)
        b = (decode(b) if U8 else b).to(tl.float32)
        xp = x + step * BK + column
        acc0 += _partial(xp, token, T, K, live, s, b)
        if BM > 1:
            acc1 += _partial(xp, token + 1, T, K, live, s, b)
        if BM > 2:
            acc2 += _partial(xp, token + 2, T, K, live, s, b)
            acc3 += _partial(xp, token + 3, T, K, live, s, b)
    m = tl.arange(0, BM)[:, None]
    acc = tl.sum(acc0, axis=1)[None, :] + tl.zeros((BM, BN), tl.float32)
    if BM > 1:
        acc = tl.where(m == 1, tl.sum(acc1, axis=1)[None, :], acc)
    if BM > 2:
        acc = tl.where(m == 2, tl.sum(acc2, axis=1)[None, :], acc)
        acc = tl.where(m == 3, tl.sum(acc3, axis=1)[None, :], acc)
    return acc


@triton.jit
def _partial(xp, token, T, K, live, s, b):
    """Sums of 16 products: f32[BN, CHUNKS] of b f32[BN, CHUNKS, 16] and one token's scaled columns."""
    a = tl.load(xp + token.to(tl.int64) * K, mask=live[:, None] & (token < T), other=0.0)
    return tl.sum(b * (a.to(tl.float32) * s[:, None])[None, :, :], axis=2)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return [_variant(sm, row) for row in tiles.get("fp8_linear", [])]


def _variant(sm: int, row: dict[str, Any]) -> Variant:
    shape = {name: int(row[name]) for name in ("BM", "BN", "BK", "SPLIT", "SLICES", "GEMV", "SWAP")}
    warps, stages = int(row["num_warps"]), int(row["num_stages"])
    tile = ".".join(f"{name.lower()}{value}" for name, value in shape.items())
    return Variant(
        kernel="fp8_linear",
        name=f"fp8_linear.{tile}.w{warps}.s{stages}",
        constants={**shape, "U8": sm < 89, "PDL": sm >= 90},
        types={"w": "*u8" if sm < 89 else "*fp8e4nv"},
        num_warps=warps,
        num_stages=stages,
        multiples=("N", "K", "block_n", "block_k"),
    )
