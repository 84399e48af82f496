"""moe_routing, and the routing inside moe_plan and moe_small_gate_up, against the dialect's M2MoeRouting."""

from __future__ import annotations

import moe_cases as moe
import moe_groups as grouping
import pytest
import torch
from torch import Tensor

from mm2c.dialect.moe_routing import reference
from mm2c_plugins.kernels.moe_routing import moe_routing


def route(logits: Tensor, bias: Tensor, k: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    t, e = logits.shape
    weights, ids = torch.full((t, k), -7.0), torch.full((t, k), -7, dtype=torch.int32)
    moe_routing[((t + rows - 1) // rows,)](logits, bias, weights, ids, t, e, k, EP=256, ROWS=rows, PDL=False)
    return weights, ids


def route_in_plan(logits: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    t, e = logits.shape
    weights, ids = torch.full((t, k), -7.0), torch.full((t, k), -7, dtype=torch.int32)
    grouping.plan(ids, e, 0, 16, weights=weights, logits=logits, bias=bias, tp=16 if t <= 16 else 64)
    return weights, ids


def route_in_small(logits: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    t, e = logits.shape
    weights, ids = torch.full((t, k), -7.0), torch.full((t, k), -7, dtype=torch.int32)
    none = moe.make_experts(t, 1, 64, 64, first=e)  # no expert is local: only the routing is left to do
    moe.small_gate_up(none, weights, ids, 64, 64, logits=logits, bias=bias)
    return weights, ids


WAYS = [route, route_in_plan, route_in_small]


def check(got: tuple[Tensor, Tensor], logits: Tensor, bias: Tensor, k: int) -> None:
    weights, ids = reference(logits, bias, k)
    assert torch.equal(got[1], ids)
    torch.testing.assert_close(got[0], weights, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize(("t", "e", "k"), [(1, 256, 8), (5, 37, 5), (3, 4, 4), (2, 1, 1), (2, 100, 16)])
@pytest.mark.parametrize("way", WAYS)
def test_random(way, t: int, e: int, k: int) -> None:
    torch.manual_seed(t)
    logits, bias = torch.randn(t, e) * 3, torch.randn(e)
    check(way(logits, bias, k), logits, bias, k)


def test_rows_of_a_block_and_the_last_block() -> None:
    torch.manual_seed(0)
    logits, bias = torch.randn(9, 60), torch.randn(60)
    check(route(logits, bias, 8, rows=4), logits, bias, 8)


def test_plan_routes_several_blocks_of_tokens() -> None:
    torch.manual_seed(0)
    logits, bias = torch.randn(64, 256), torch.randn(256)
    check(route_in_plan(logits, bias, 8), logits, bias, 8)


@pytest.mark.parametrize("way", WAYS)
def test_equal_scores_go_by_lower_id(way) -> None:
    logits = torch.zeros(4, 12)
    logits[1] = torch.tensor([0.0, 1.0] * 6)
    logits[2] = 100.0  # sigmoid is 1 for all
    logits[3] = torch.arange(12) % 3 * -200.0  # and 0 for most
    bias = torch.zeros(12)
    check(way(logits, bias, 5), logits, bias, 5)
    assert way(logits, bias, 5)[1][1].tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("way", WAYS)
def test_not_numbers_and_infinities(way) -> None:
    nan, inf = float("nan"), float("inf")
    torch.manual_seed(1)
    logits = torch.randn(6, 20)
    logits[0] = nan
    logits[1, [3, 17]] = nan
    logits[2] = inf
    logits[3] = -inf
    logits[4, ::2] = -inf
    logits[5, 7:9] = torch.tensor([inf, -inf])
    bias = torch.randn(20)
    check(way(logits, bias, 4), logits, bias, 4)
    for odd in (nan, inf, -inf):
        bias[4] = odd
        _, ids = way(logits[:2], bias, 3)
        assert ((ids >= 0) & (ids < 20)).all()
        assert all(len(set(row)) == 3 for row in ids.tolist())


@pytest.mark.parametrize("way", WAYS)
def test_negative_totals_and_close_values(way) -> None:
    """Keys of negative numbers turn around; neighbours in f32 must not be mixed up."""
    torch.manual_seed(2)
    bias = -torch.rand(64) * 5
    bias[10:20] = torch.nextafter(bias[9], torch.tensor(0.0))
    logits = torch.zeros(2, 64)
    check(way(logits, bias, 7), logits, bias, 7)
