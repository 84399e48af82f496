"""M2QkSumSquares: sums of squares over the whole width of q and of k, a token a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

if TYPE_CHECKING:
    from mm2c_plugins.kernels.catalogue import TileTable, Variant

PARAMETERS = {
    "q": "*bf16",
    "k": "*bf16",
    "s": "*fp32",
    "q_width": "i32",
    "k_width": "i32",
    "q_stride": "i32",
    "k_stride": "i32",
}


@triton.jit
def _sum_squares(x, width, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        o = start + tl.arange(0, BLOCK)
        value = tl.load(x + o, mask=o < width, other=0.0).to(tl.float32)
        total += value * value
    return tl.sum(total, axis=0)


@triton.jit
def qk_sum_squares(
    q,
    k,
    s,
    q_width,
    k_width,
    q_stride,
    k_stride,
    BLOCK: tl.constexpr,
    KBLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """s[t, 0] = Σ q[t]², s[t, 1] = Σ k[t]², in f32.

    q bf16 [T, q_width] and k bf16 [T, k_width] with rows q_stride and k_stride elements apart; s f32 [T, 2].
    Widths and strides are multiples of 16. BLOCK and KBLOCK: elements of q and of k read at a time.
    grid: (T).
    """
    t = tl.program_id(0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    tl.store(s + t * 2, _sum_squares(q + t.to(tl.int64) * q_stride, q_width, BLOCK))
    tl.store(s + t * 2 + 1, _sum_squares(k + t.to(tl.int64) * k_stride, k_width, KBLOCK))


def variants(sm: int, tiles: TileTable) -> list[Variant]:
    from mm2c_plugins.kernels.catalogue import Variant

    found = []
    for row in tiles.get("qk_sum_squares", []):
        block, key_block, warps = row["BLOCK"], row["KBLOCK"], row["num_warps"]
        found.append(
            Variant(
                "qk_sum_squares",
                f"qk_sum_squares.b{block}.k{key_block}.w{warps}",
                {"BLOCK": block, "KBLOCK": key_block, "PDL": sm >= 90},
                num_warps=warps,
                num_stages=row["num_stages"],
                multiples=("q_width", "k_width", "q_stride", "k_stride"),
            )
        )
    return found
