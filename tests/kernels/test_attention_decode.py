"""attention_decode and attention_merge: lengths around pages, tiles and splits, against exact attention."""

from __future__ import annotations

import attention_cases as cases
import pytest
import torch

from mm2c.dialect import paged_attention as dialect
from mm2c_plugins.kernels.attention_merge import attention_merge

ULP = 2.0**-8  # of bf16, relative; probabilities and results are rounded to it


def decode(case: cases.Case, kv: str, block: int, splits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(the kernels' result, exact attention over the same q and caches), both [B, 1, HQ·D]."""
    low = case.with_cache(kv)
    q, k_cache, v_cache = cases.filled(low, kv)
    got = cases.run_decode(low, q, k_cache, v_cache, kv=kv, block=block, splits=splits)
    kind = low.k_cache.dtype
    return got[:, None], cases.attention(low, q, k_cache.view(kind), v_cache.view(kind))


def check(case: cases.Case, kv: str = "bf16", block: int = 32, splits: int = 0) -> torch.Tensor:
    got, want = decode(case, kv, block, splits)
    torch.testing.assert_close(got.double(), want, rtol=3 * ULP, atol=2 * ULP)
    return got


EDGES = [0, 1, 14, 15, 16, 30, 31, 32, 33, 62, 63, 64, 95, 96, 128]  # length - 1


@pytest.mark.parametrize(("page", "block"), [(16, 32), (64, 64), (64, 32), (16, 16)])
def test_lengths_around_edges(page: int, block: int):
    new = [1] * len(EDGES)
    new[3] = new[10] = 0
    case = cases.make_case(EDGES, new, page=page, seed=page + block)
    direct = check(case, block=block)
    assert not direct[3].any()
    assert not direct[10].any()


@pytest.mark.parametrize("splits", [1, 2, 7, 33])
def test_splits_join_to_the_direct_result(splits: int):
    case = cases.make_case([0, 31, 32, 100, 150], [1, 1, 1, 1, 0], page=16, seed=splits)
    split, want = decode(case, "bf16", 32, splits)
    torch.testing.assert_close(split.double(), want, rtol=3 * ULP, atol=2 * ULP)
    assert not split[4].any()


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (12, 2), (8, 1), (16, 1), (4, 4)])
def test_groups_of_query_heads(heads: int, kv_heads: int):
    check(cases.make_case([70, 5], [1, 1], heads=heads, kv_heads=kv_heads, page=64, seed=heads), splits=2)


@pytest.mark.parametrize("splits", [0, 3])
@pytest.mark.parametrize("page", [16, 64])
def test_e4m3_caches_by_bits_and_by_type_agree(page: int, splits: int):
    case = cases.make_case([100, 64, 0, 40], [1, 1, 1, 0], heads=12, kv_heads=2, page=page, seed=9)
    by_type = check(case, "e4m3", 32, splits)
    by_bits = check(case, "u8", 32, splits)
    assert torch.equal(by_type, by_bits)


def test_the_whole_op_is_the_dialects():
    case = cases.make_case([130, 15, 64, 0], [1, 1, 0, 1], heads=12, kv_heads=2, page=16, seed=11)
    q, k_cache, v_cache = cases.run_rope_kv(case, "bf16", 4)
    got = cases.run_decode(case, q, k_cache, v_cache, kv="bf16", block=32, splits=4)
    clean = [cache.nan_to_num(0.0) for cache in (case.k_cache, case.v_cache)]
    inputs = [x.nan_to_num(0.0) for x in (case.q, case.k, case.v, case.s)]
    tables = (case.q_weight, case.k_weight, case.cos, case.sin, case.past, case.new, case.table)
    out, k_want, _ = dialect.reference(*inputs, *tables, *clean, *case.widths)
    real = case.new > 0
    torch.testing.assert_close(got[real].float(), out[real, 0].float(), rtol=5 * ULP, atol=5 * ULP)
    torch.testing.assert_close(k_cache.nan_to_num(0.0).float(), k_want.float(), rtol=4 * ULP, atol=4 * ULP)


def test_large_scores_do_not_overflow():
    case = cases.make_case([90], [1], seed=12)
    q, k_cache, v_cache = cases.filled(case, "bf16")
    q *= 300
    got = cases.run_decode(case, q, k_cache, v_cache, kv="bf16", block=32, splits=3)
    torch.testing.assert_close(
        got[:, None].double(), cases.attention(case, q, k_cache, v_cache), rtol=3 * ULP, atol=2 * ULP
    )


def test_a_wrong_page_in_the_row_reads_a_neighbour_instead_of_faulting():
    case = cases.make_case([40], [1], seed=13)
    q, k_cache, v_cache = cases.filled(case, "bf16")
    case.table[0, 0] = 2**31 - 1
    out = cases.run_decode(
        case, q, k_cache.nan_to_num(0.0), v_cache.nan_to_num(0.0), kv="bf16", block=32, splits=2
    )
    assert out.isfinite().all()


def test_a_nan_that_belongs_to_the_row_shows():
    case = cases.make_case([40, 40], [1, 1], seed=14)
    case.v_cache[int(case.table[0, 1]), 3] = float("nan")
    for kv in ("bf16", "e4m3", "u8"):
        low = case.with_cache(kv)
        q, k_cache, v_cache = cases.filled(low, kv)
        out = cases.run_decode(low, q, k_cache, v_cache, kv=kv, block=32, splits=2)
        assert out[0].isnan().all()
        assert out[1].isfinite().all()


def test_merge_of_nothing_is_zero_and_reads_no_empty_part():
    part = torch.full((3, 4, 128), float("nan"))
    lse = torch.full((3, 4), float("-inf"))
    part[1, 2], lse[1, 2] = 3.0, -500.0
    part[2, 0], lse[2, 0] = 1.0, 1000.0
    part[2, 3], lse[2, 3] = 4.0, 1001.0
    out = torch.full((3, 128), float("nan"), dtype=torch.bfloat16)
    attention_merge[(3,)](part, lse, out, 4, D=128, SP=64, PDL=False)
    assert out.tolist() == [[0.0] * 128, [3.0] * 128, [3.0] * 128]
