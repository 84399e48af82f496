"""Launches of the kernels that group pairs by expert, as the plugin makes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mm2c_plugins.kernels.moe_count import moe_count
from mm2c_plugins.kernels.moe_offsets import moe_offsets
from mm2c_plugins.kernels.moe_plan import moe_plan
from mm2c_plugins.kernels.moe_scatter import moe_scatter

UNWRITTEN = -7


@dataclass(frozen=True)
class Groups:
    """What the planning kernels write."""

    order: Tensor
    tile_expert: Tensor
    tile_row: Tensor
    tile_end: Tensor

    def tiles(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.tile_expert, self.tile_row, self.tile_end

    def all(self) -> tuple[Tensor, ...]:
        return self.order, *self.tiles()


def _no_groups(pairs: int, local: int, bm: int) -> Groups:
    tiles = min(pairs, local) + pairs // bm
    return Groups(*(torch.full((n,), UNWRITTEN, dtype=torch.int32) for n in (pairs, tiles, tiles, tiles)))


def plan(
    ids: Tensor,
    local: int,
    first: int,
    bm: int,
    *,
    weights: Tensor | None = None,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
    tp: int = 64,
) -> Groups:
    """moe_plan; with ``logits`` it routes and writes ``weights`` and ``ids``, else it reads ``ids``."""
    t, k = ids.shape
    groups = _no_groups(t * k, local, bm)
    route = logits is not None
    absent = torch.empty(0)
    moe_plan[(1,)](
        logits if logits is not None else absent,
        bias if bias is not None else absent,
        weights if weights is not None else absent,
        ids,
        *groups.all(),
        t,
        logits.shape[1] if logits is not None else 0,
        k,
        first,
        local,
        len(groups.tile_expert),
        EP=256,
        BM=bm,
        ROUTE=route,
        TP=tp,
        PDL=False,
    )
    return groups


def permute(ids: Tensor, local: int, first: int, bm: int, chunk: int) -> Groups:
    """moe_count, moe_offsets, moe_scatter."""
    pairs = ids.numel()
    groups = _no_groups(pairs, local, bm)
    chunks = math.ceil(pairs / chunk)
    counts = torch.full((chunks, 256), UNWRITTEN, dtype=torch.int32)
    moe_count[(chunks,)](ids, counts, pairs, first, local, EP=256, CHUNK=chunk, PDL=False)
    moe_offsets[(1,)](
        counts, *groups.tiles(), chunks, local, len(groups.tile_expert), EP=256, BM=bm, PDL=False
    )
    moe_scatter[(chunks,)](ids, counts, groups.order, pairs, first, local, EP=256, CHUNK=chunk, PDL=False)
    return groups
