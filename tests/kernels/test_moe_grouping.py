"""The grouping of pairs by expert: moe_plan for few tokens, moe_count, moe_offsets, moe_scatter for many."""

from __future__ import annotations

import moe_cases as moe
import moe_groups as grouping
import pytest
import torch
from torch import Tensor


def grouped_by_torch(
    ids: Tensor, local: int, first: int, bm: int
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Order of the local pairs and (expert, first row, end) of the tiles, from the definition."""
    flat = ids.flatten().tolist()
    order: list[int] = []
    tiles = []
    for expert in range(local):
        pairs = [pair for pair, chosen in enumerate(flat) if chosen == expert + first]
        start, end = len(order), len(order) + len(pairs)
        order += pairs
        tiles += [(expert, row, end) for row in range(start, end, bm)]
    return order, tiles


def check(groups: grouping.Groups, ids: Tensor, local: int, first: int, bm: int) -> None:
    order, tiles = grouped_by_torch(ids, local, first, bm)
    assert groups.order.tolist() == order + [grouping.UNWRITTEN] * (ids.numel() - len(order))
    found = list(zip(*(part.tolist() for part in groups.tiles()), strict=True))
    assert found[: len(tiles)] == tiles
    assert all(expert == -1 for expert, *_ in found[len(tiles) :])


def ids_of(kind: str, t: int, k: int, experts: int) -> Tensor:
    torch.manual_seed(t * k)
    if kind == "one":  # every token takes the same experts, the others stay empty
        return torch.arange(k, dtype=torch.int32).repeat(t, 1) + experts - k
    if kind == "repeated":  # what routing never gives: an expert twice in a token's list
        return torch.randint(0, max(experts // 4, 1), (t, k), dtype=torch.int32)
    return moe.choose(t, experts, k)[1]


SIZES = [(1, 1, 1), (1, 8, 256), (3, 4, 5), (17, 5, 37), (64, 8, 256), (64, 16, 100)]


@pytest.mark.parametrize(("t", "k", "experts"), SIZES)
@pytest.mark.parametrize("kind", ["random", "one", "repeated"])
def test_plan(kind: str, t: int, k: int, experts: int) -> None:
    ids = ids_of(kind, t, k, experts)
    check(grouping.plan(ids, experts, 0, 16, tp=16 if t <= 16 else 64), ids, experts, 0, 16)


@pytest.mark.parametrize(("t", "k", "experts"), [*SIZES, (65, 8, 256), (150, 6, 40)])
@pytest.mark.parametrize("kind", ["random", "one", "repeated"])
def test_permute(kind: str, t: int, k: int, experts: int) -> None:
    ids = ids_of(kind, t, k, experts)
    check(grouping.permute(ids, experts, 0, 32, 256), ids, experts, 0, 32)


def test_permute_in_more_chunks_than_offsets_handles_at_once() -> None:
    ids = ids_of("random", 290, 8, 24)
    check(grouping.permute(ids, 24, 0, 64, 64), ids, 24, 0, 64)


@pytest.mark.parametrize(("first", "local"), [(0, 10), (10, 13), (30, 10), (63, 1), (200, 20)])
def test_slice_of_the_experts(first: int, local: int) -> None:
    """A rank's experts out of 64; the last case has none that any token chose."""
    ids = ids_of("random", 30, 6, 64)
    for groups in (grouping.plan(ids, local, first, 16), grouping.permute(ids, local, first, 16, 64)):
        check(groups, ids, local, first, 16)


def test_ids_that_are_no_expert() -> None:
    ids = torch.tensor([[-1, 2, 300], [2**31 - 1, -(2**31), 0], [7, 8, 9]], dtype=torch.int32)
    for groups in (grouping.plan(ids, 8, 0, 16), grouping.permute(ids, 8, 0, 16, 256)):
        check(groups, ids, 8, 0, 16)


@pytest.mark.parametrize("bm", [16, 32, 64, 128])
def test_plan_routes_and_groups(bm: int) -> None:
    torch.manual_seed(bm)
    logits, bias = torch.randn(40, 48), torch.randn(48)
    bias[5] = 9.0  # an expert that all tokens take: several tiles
    weights, ids = torch.full((40, 3), -7.0), torch.full((40, 3), -7, dtype=torch.int32)
    groups = grouping.plan(ids, 20, 4, bm, weights=weights, logits=logits, bias=bias)
    assert (ids[:, 0] == 5).all()
    check(groups, ids, 20, 4, bm)
