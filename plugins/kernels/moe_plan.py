"""Routing and grouping by expert in one block, for at most TP tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mm2c_plugins.kernels.catalogue import Variant
from mm2c_plugins.kernels.moe_choose import choose, scores_and_keys, shares
from mm2c_plugins.kernels.moe_group import close_tiles, write_tiles
from mm2c_plugins.kernels.moe_variants import group_heights, plain_variants

PARAMETERS = {
    "logits": "*fp32",
    "bias": "*fp32",
    "weights": "*fp32",
    "ids": "*i32",
    "order": "*i32",
    "tile_expert": "*i32",
    "tile_row": "*i32",
    "tile_end": "*i32",
    "T": "i32",
    "E_total": "i32",
    "K": "i32",
    "first_expert": "i32",
    "E_local": "i32",
    "max_tiles": "i32",
}


@triton.jit
def moe_plan(
    logits,
    bias,
    weights,
    ids,
    order,
    tile_expert,
    tile_row,
    tile_end,
    T,
    E_total,
    K,
    first_expert,
    E_local,
    max_tiles,
    EP: tl.constexpr,
    BM: tl.constexpr,
    ROUTE: tl.constexpr,
    TP: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (1), T <= TP. ROUTE: writes weights f32[T, K] and ids i32[T, K] as moe_routing does; else reads ids.

    order i32[T·K]: the pairs token·K + slot whose expert is one of first_expert … first_expert + E_local - 1, by
    expert, within one by pair. tile_expert, tile_row, tile_end i32[max_tiles]: tiles of at most BM rows of one local
    expert, its first position in order and the end of the expert's pairs; tiles not needed have tile_expert -1.
    max_tiles = min(T·K, E_local) + T·K // BM always suffices.
    """
    SLOTS: tl.constexpr = 16  # K <= 16
    SOME: tl.constexpr = 64  # experts grouped at once: all of them would not fit the registers
    ROWS: tl.constexpr = TP if TP < 32 else 32  # tokens routed at once, for the same reason
    token = tl.arange(0, TP)[:, None]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if ROUTE:
        expert = tl.arange(0, EP)[None, :]
        inside = expert < E_total
        biases = tl.load(bias + expert, mask=inside, other=0.0)
        for first in range(0, T, ROWS):
            row = first + tl.arange(0, ROWS)[:, None]
            known = (row < T) & inside
            at = logits + row * E_total + expert
            scores, keys = scores_and_keys(tl.load(at, mask=known, other=0.0), biases, inside)
            place, chosen = choose(keys, expert, K, EP, 1)
            share = shares(scores, chosen, 1)
            chosen &= row < T
            tl.store(ids + row * K + place, expert + tl.zeros_like(place), mask=chosen)
            tl.store(weights + row * K + place, share, mask=chosen)
        tl.debug_barrier()  # other threads read the ids
    slots = tl.arange(0, SLOTS)[None, :]
    listed = tl.load(ids + token * K + slots, mask=(token < T) & (slots < K), other=-1) - first_expert
    tile = 0
    before = 0
    for base in range(0, E_local, SOME):
        local = base + tl.arange(0, SOME)
        taken = tl.zeros((TP, SOME), tl.int32)
        later = tl.zeros((TP, SLOTS), tl.int32)  # how often a slot's id stands in it and in later ones
        for slot in range(K):
            one = tl.load(ids + token * K + slot, mask=token < T, other=-1) - first_expert
            taken += (one == local[None, :]).to(tl.int32)
            later += ((one == listed) & (slots <= slot)).to(tl.int32)
        taken = tl.where(local[None, :] < E_local, taken, 0)
        count = tl.sum(taken, 0)
        start = before + tl.cumsum(count, 0) - count
        end = start[None, :] + tl.cumsum(taken, 0)  # of the pairs of this expert up to this token
        mine = (listed >= base) & (listed < tl.minimum(base + SOME, E_local)) & (token < T)
        to = tl.gather(end, tl.where(mine, listed - base, 0), 1) - later
        tl.store(order + to, token * K + slots, mask=mine)
        tile = write_tiles(local, start, count, tile, tile_expert, tile_row, tile_end, BM)
        before += tl.sum(count, 0)
    close_tiles(tile, tile_expert, max_tiles, EP)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    fixed = [
        {"EP": 256, "BM": height, "ROUTE": route, "PDL": sm >= 90}
        for height in group_heights(tiles)
        for route in (False, True)
    ]
    return plain_variants("moe_plan", tiles.get("moe_plan", []), fixed)
