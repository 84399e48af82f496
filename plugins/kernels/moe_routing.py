"""Routing alone: the experts of every token and their weights (M2MoeRouting)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mm2c_plugins.kernels.catalogue import Variant
from mm2c_plugins.kernels.moe_choose import choose, scores_and_keys, shares
from mm2c_plugins.kernels.moe_variants import plain_variants

PARAMETERS = {
    "logits": "*fp32",
    "bias": "*fp32",
    "weights": "*fp32",
    "ids": "*i32",
    "T": "i32",
    "E": "i32",
    "K": "i32",
}


@triton.jit
def moe_routing(logits, bias, weights, ids, T, E, K, EP: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr):
    """logits f32[T, E], bias f32[E] → weights f32[T, K], ids i32[T, K], best expert first. Grid (⌈T / ROWS⌉).

    s = sigmoid(logits); the K largest s + bias, equals by lower id; weights = s of those / their sum. K <= E <= EP.
    ids are in [0, E) whatever the logits; a NaN counts as largest and makes the token's weights NaN.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    expert = tl.arange(0, EP)[None, :]
    inside = expert < E
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(logits + row.to(tl.int64) * E + expert, mask=(row < T) & inside, other=0.0)
    scores, keys = scores_and_keys(x, tl.load(bias + expert, mask=inside, other=0.0), inside)
    place, chosen = choose(keys, expert, K, EP, 1)
    share = shares(scores, chosen, 1)
    chosen &= row < T
    to = row.to(tl.int64) * K + place
    tl.store(weights + to, share, mask=chosen)
    tl.store(ids + to, expert + tl.zeros_like(place), mask=chosen)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return plain_variants("moe_routing", tiles.get("moe_routing", []), [{"EP": 256, "PDL": sm >= 90}])
