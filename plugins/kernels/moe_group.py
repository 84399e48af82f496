"""Cutting the pairs of each expert into tiles, shared by moe_plan (few tokens) and moe_offsets (many)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def write_tiles(expert, start, count, first_tile, tile_expert, tile_row, tile_end, BM: tl.constexpr):
    """Each expert's ``count`` pairs, from sorted position ``start``, become tiles of at most BM rows.

    expert (the number to write), start, count i32[n]. Tiles stand in the order of ``expert``, from ``first_tile`` on;
    returns the tile behind the last.
    """
    tiles = (count + BM - 1) // BM
    first = first_tile + tl.cumsum(tiles, 0) - tiles
    for i in range(tl.max(tiles, 0)):
        needed = i < tiles
        tl.store(tile_expert + first + i, expert, mask=needed)
        tl.store(tile_row + first + i, start + i * BM, mask=needed)
        tl.store(tile_end + first + i, start + count, mask=needed)
    return first_tile + tl.sum(tiles, 0)


@triton.jit
def close_tiles(first_tile, tile_expert, max_tiles, BLOCK: tl.constexpr):
    """Tiles ``first_tile`` … ``max_tiles`` - 1 are not needed: expert -1."""
    for base in range(first_tile, max_tiles, BLOCK):
        tile = base + tl.arange(0, BLOCK)
        tl.store(tile_expert + tile, tl.full((BLOCK,), -1, tl.int32), mask=tile < max_tiles)
