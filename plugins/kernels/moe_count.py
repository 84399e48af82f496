"""Grouping of many pairs by expert, first of three steps: how many pairs of each expert a chunk holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mm2c_plugins.kernels.catalogue import Variant
from mm2c_plugins.kernels.moe_variants import plain_variants

PARAMETERS = {"ids": "*i32", "counts": "*i32", "N": "i32", "first_expert": "i32", "E_local": "i32"}


@triton.jit
def moe_count(
    ids, counts, N, first_expert, E_local, EP: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr
):
    """ids i32[N] → counts i32[P, EP] by local expert id - first_expert, P = ⌈N / CHUNK⌉. Grid (P).

    Ids outside first_expert … first_expert + E_local - 1 are not counted.
    """
    chunk = tl.program_id(0)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    local = tl.load(ids + pair, mask=pair < N, other=-1) - first_expert
    mine = (pair < N) & (local >= 0) & (local < E_local)
    counted = tl.histogram(tl.where(mine, local, 0), EP, mask=mine)
    tl.store(counts + chunk * EP + tl.arange(0, EP), counted)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return plain_variants("moe_count", tiles.get("moe_permute", []), [{"EP": 256, "PDL": sm >= 90}])
