"""Grouping of many pairs by expert, second of three steps: where each chunk puts its pairs, and the tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mm2c_plugins.kernels.catalogue import Variant
from mm2c_plugins.kernels.moe_group import close_tiles, write_tiles
from mm2c_plugins.kernels.moe_variants import group_heights, plain_variants

PARAMETERS = {
    "counts": "*i32",
    "tile_expert": "*i32",
    "tile_row": "*i32",
    "tile_end": "*i32",
    "P": "i32",
    "E_local": "i32",
    "max_tiles": "i32",
}


@triton.jit
def moe_offsets(
    counts,
    tile_expert,
    tile_row,
    tile_end,
    P,
    E_local,
    max_tiles,
    EP: tl.constexpr,
    BM: tl.constexpr,
    PDL: tl.constexpr,
):
    """counts i32[P, EP] of moe_count becomes, in place, each chunk's first sorted position by expert. Grid (1).

    Writes the tiles as moe_plan does. Experts from E_local on have no pairs.
    """
    CHUNKS: tl.constexpr = 32  # rows of counts handled at once
    expert = tl.arange(0, EP)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    count = tl.zeros((EP,), tl.int32)
    for base in range(0, P, CHUNKS):
        chunk = base + tl.arange(0, CHUNKS)[:, None]
        known = (chunk < P) & (expert[None, :] < E_local)
        count += tl.sum(tl.load(counts + chunk * EP + expert[None, :], mask=known, other=0), 0)
    start = tl.cumsum(count, 0) - count
    following = start
    for base in range(0, P, CHUNKS):
        chunk = base + tl.arange(0, CHUNKS)[:, None]
        known = (chunk < P) & (expert[None, :] < E_local)
        place = counts + chunk * EP + expert[None, :]
        some = tl.load(place, mask=known, other=0)
        tl.store(place, following[None, :] + tl.cumsum(some, 0) - some, mask=known)
        following += tl.sum(some, 0)
    used = write_tiles(expert, start, count, 0, tile_expert, tile_row, tile_end, BM)
    close_tiles(used, tile_expert, max_tiles, EP)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    fixed = [{"EP": 256, "BM": height, "PDL": sm >= 90} for height in group_heights(tiles)]
    rows = [{"max_tokens": 0, "num_warps": 8, "num_stages": 1}] if fixed else []
    return plain_variants("moe_offsets", rows, fixed)
