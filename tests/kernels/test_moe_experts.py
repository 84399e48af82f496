"""The experts' products: the grouped kernels and those for few tokens, against the dialect and exact sums."""

from __future__ import annotations

from dataclasses import replace

import moe_cases as moe
import moe_groups as grouping
import pytest
import torch
from torch import Tensor

from mm2c.dialect import moe_experts_bf16, moe_experts_fp8

CLOSE = 4e-3  # h and the results are bf16: 2^-9 each, over sums of many


def dialect(e: moe.Experts, weights: Tensor, ids: Tensor) -> Tensor:
    """The dialect's reference in f32."""
    if e.scaled:
        scaled = (e.w13, e.w13_scale, e.w2, e.w2_scale, e.first, e.block_n, e.block_k)
        return moe_experts_fp8.reference(e.x.float(), weights, ids, *scaled)
    return moe_experts_bf16.reference(e.x.float(), weights, ids, e.w13, e.w2, e.first)


def check(got: Tensor, e: moe.Experts, weights: Tensor, ids: Tensor) -> None:
    assert moe.relative_error(got, moe.expected(e, weights, ids)) < CLOSE
    assert moe.relative_error(got, dialect(e, weights, ids).double()) < 2 * CLOSE


def both_ways(e: moe.Experts, weights: Tensor, ids: Tensor) -> list[Tensor]:
    local = len(e.w13)
    groups = grouping.plan(ids, local, e.first, 16)
    return [
        moe.grouped(e, weights, ids, groups, bm=16, bn=64, bk=64),
        moe.small(e, weights, ids, bn=64, bk=256),
    ]


WIDTHS = [
    (192, 192, (64, 64)),
    (128, 384, (128, 128)),
    (256, 64, (64, 128)),
    (128, 192, (64, 128)),
    (192, 128, (128, 64)),
]


@pytest.mark.parametrize(("c", "i", "block"), WIDTHS)
@pytest.mark.parametrize("fp8", [True, False])
def test_both_ways(fp8: bool, c: int, i: int, block: tuple[int, int]) -> None:
    torch.manual_seed(c + i)
    e = moe.make_experts(2, 5, c, i, block=block, fp8=fp8)
    weights, ids = moe.choose(2, 5, 2)
    for got in both_ways(e, weights, ids):
        check(got, e, weights, ids)


@pytest.mark.parametrize(("bm", "bn", "bk"), [(16, 32, 128), (32, 64, 128), (64, 128, 64), (128, 64, 128)])
def test_tile_shapes(bm: int, bn: int, bk: int) -> None:
    """Several tiles of one expert, tails in rows and in n."""
    torch.manual_seed(bm)
    e = moe.make_experts(40, 2, 128, 192, block=(64, 128))
    weights, ids = moe.choose(40, 2, 2)
    groups = grouping.permute(ids, 2, 0, bm, 64)
    h = moe.gate_up(e, 2, groups, bm, bn, bk)
    got = moe.combine(e, moe.down(e, h, weights, groups, bm, bn, 64), ids)
    check(got, e, weights, ids)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_choices_of_a_token(k: int) -> None:
    torch.manual_seed(k)
    e = moe.make_experts(2, 9, 64, 64, block=(64, 64))
    weights, ids = moe.choose(2, 9, k)
    for got in both_ways(e, weights, ids):
        check(got, e, weights, ids)


@pytest.mark.parametrize(("first", "local"), [(0, 4), (4, 4), (8, 2), (40, 3)])
def test_slice_of_the_experts(first: int, local: int) -> None:
    """Pairs of other ranks are never written nor read: their h and y stay NaN. The last slice has no pair at all."""
    torch.manual_seed(first)
    e = moe.make_experts(5, local, 128, 64, first=first, block=(64, 64))
    weights, ids = moe.choose(5, 10, 3)
    for got in both_ways(e, weights, ids):
        check(got, e, weights, ids)


def ranked(e: moe.Experts, own: slice) -> moe.Experts:
    """What one rank holds."""
    scales = dict(w13_scale=e.w13_scale[own], w2_scale=e.w2_scale[own])
    return replace(e, w13=e.w13[own], w2=e.w2[own], first=own.start, **scales)


def test_slices_sum_to_the_whole() -> None:
    torch.manual_seed(3)
    whole = moe.make_experts(4, 6, 128, 64, block=(64, 64))
    weights, ids = moe.choose(4, 6, 3)
    parts = [ranked(whole, slice(0, 2)), ranked(whole, slice(2, 6))]
    for part in zip(*(both_ways(part, weights, ids) for part in parts), strict=True):
        check(sum(p.double() for p in part), whole, weights, ids)


def test_sixty_five_tokens_of_one_expert() -> None:
    torch.manual_seed(4)
    e = moe.make_experts(65, 4, 64, 64, block=(64, 64))
    ids = torch.full((65, 1), 2, dtype=torch.int32)
    weights = torch.ones(65, 1)
    groups = grouping.permute(ids, 4, 0, 32, 256)
    assert groups.tile_expert.tolist()[:4] == [2, 2, 2, -1]
    check(moe.grouped(e, weights, ids, groups, bm=32, bn=64, bk=64), e, weights, ids)


def test_small_routes_itself() -> None:
    torch.manual_seed(5)
    e = moe.make_experts(2, 6, 64, 64, first=2, block=(64, 64))
    logits, bias = torch.randn(2, 10), torch.randn(10)
    weights, ids = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32)
    got = moe.small(e, weights, ids, bn=32, bk=64, logits=logits, bias=bias)
    assert (weights.sum(1) - 1).abs().max() < 1e-6
    check(got, e, weights, ids)


@pytest.mark.parametrize("way", [0, 1])
def test_u8_is_bit_exact(way: int) -> None:
    """sm_80 decodes the codes itself: the same numbers, so the same bits out."""
    torch.manual_seed(6)
    e = moe.make_experts(3, 4, 128, 64, block=(64, 64))
    weights, ids = moe.choose(3, 4, 2)
    groups = grouping.plan(ids, 4, 0, 16)

    def run(u8: bool) -> Tensor:
        if way:
            return moe.small(e, weights, ids, bn=64, bk=128, u8=u8)
        return moe.grouped(e, weights, ids, groups, bm=16, bn=64, bk=64, u8=u8)

    assert torch.equal(run(True).view(torch.int16), run(False).view(torch.int16))


@pytest.mark.parametrize("u8", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_every_code_exactly(small: bool, u8: bool) -> None:
    """h picks single columns of w2, which holds every finite code; scales are powers of two: nothing rounds."""
    codes = torch.arange(254, dtype=torch.uint8)
    codes = torch.cat([torch.where(codes >= 127, codes + 1, codes), torch.zeros(2, dtype=torch.uint8)])
    w2 = codes.repeat(16).reshape(1, 64, 64)
    w2[0] = w2[0].roll(1, 0)
    w2 = w2.contiguous().view(torch.float8_e4m3fn)
    scale = torch.full((1, 1, 1), 2.0**-5)
    x = torch.zeros(64, 64, dtype=torch.bfloat16)
    e = moe.Experts(
        x, torch.zeros(1, 128, 64).to(torch.float8_e4m3fn), torch.ones(1, 2, 1), w2, scale, 0, 64, 64
    )
    weights, ids = torch.full((64, 1), 2.0), torch.zeros(64, 1, dtype=torch.int32)
    h = torch.eye(64, dtype=torch.bfloat16)
    if small:
        got = moe.small_down(e, h, weights, ids, 64, 128, u8)
    else:
        got = moe.down(e, h, weights, grouping.plan(ids, 1, 0, 64), 64, 64, 64, u8)
    assert torch.equal(got.float(), w2[0].float().T * 2.0**-4)


def test_large_and_tiny_products() -> None:
    """Gates far out: silu underflows to 0 or is the identity, nothing becomes NaN."""
    torch.manual_seed(7)
    e = moe.make_experts(2, 3, 64, 64, block=(64, 64))
    e = replace(e, x=e.x * torch.tensor([[300.0], [1e-20]]).to(torch.bfloat16), w13_scale=e.w13_scale * 10)
    weights, ids = moe.choose(2, 3, 2)
    for got in both_ways(e, weights, ids):
        assert got.isfinite().all()
        assert moe.relative_error(got[:1], moe.expected(replace(e, x=e.x[:1]), weights[:1], ids[:1])) < CLOSE
        assert got[1].abs().max() < 1e-20
