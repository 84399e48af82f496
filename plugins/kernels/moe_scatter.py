"""Grouping of many pairs by expert, last of three steps: every pair to its sorted position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mm2c_plugins.kernels.catalogue import Variant
from mm2c_plugins.kernels.moe_variants import plain_variants

PARAMETERS = {
    "ids": "*i32",
    "counts": "*i32",
    "order": "*i32",
    "N": "i32",
    "first_expert": "i32",
    "E_local": "i32",
}


@triton.jit
def moe_scatter(
    ids, counts, order, N, first_expert, E_local, EP: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr
):
    """ids i32[N], counts i32[P, EP] (first positions, of moe_offsets) → order i32[N]: pairs by expert. Grid (P).

    A pair stands as many places behind its chunk's first position as the chunk has earlier pairs of the same expert.
    """
    PART: tl.constexpr = 16
    chunk = tl.program_id(0)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    local = tl.load(ids + pair, mask=pair < N, other=-1) - first_expert
    mine = (pair < N) & (local >= 0) & (local < E_local)
    position = tl.load(counts + chunk * EP + local, mask=mine, other=0)
    for base in range(0, CHUNK, PART):
        other = chunk * CHUNK + base + tl.arange(0, PART)
        other_local = tl.load(ids + other, mask=other < N, other=-1) - first_expert
        same = (other_local[None, :] == local[:, None]) & (other[None, :] < pair[:, None])
        position += tl.sum(same.to(tl.int32), 1)
    tl.store(order + position, pair, mask=mine)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return plain_variants("moe_scatter", tiles.get("moe_permute", []), [{"EP": 256, "PDL": sm >= 90}])
