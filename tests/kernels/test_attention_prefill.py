"""attention_prefill: whole prompts, chunks after a past and rows of different lengths, against exact attention."""

from __future__ import annotations

import attention_cases as cases
import pytest
import torch

from mm2c.dialect import paged_attention as dialect

ULP = 2.0**-8


def prefill(case: cases.Case, kv: str = "bf16", rows: int = 16, block: int = 32) -> torch.Tensor:
    low = case.with_cache(kv)
    q, k_cache, v_cache = cases.filled(low, kv)
    got = cases.run_prefill(low, q, k_cache, v_cache, kv=kv, rows=rows, block=block)
    kind = low.k_cache.dtype
    want = cases.attention(low, q, k_cache.view(kind), v_cache.view(kind))
    torch.testing.assert_close(got.double(), want, rtol=3 * ULP, atol=2 * ULP)
    for row, new in enumerate(case.new.tolist()):
        assert not got[row, new:].any()
    return got


@pytest.mark.parametrize(("page", "rows", "block"), [(16, 16, 32), (64, 32, 64), (64, 64, 32), (16, 128, 64)])
def test_rows_of_all_lengths(page: int, rows: int, block: int):
    new = [1, 15, 16, 17, 33, 0, 40]
    past = [0] * len(new)
    prefill(cases.make_case(past, new, steps=40, heads=1, page=page, seed=rows), rows=rows, block=block)


@pytest.mark.parametrize("past", [1, 15, 16, 31, 32, 33, 63, 64, 70])
def test_chunks_after_a_past(past: int):
    prefill(cases.make_case([past, past + 5], [19, 3], steps=20, heads=1, page=16, seed=past))


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 1), (4, 2), (8, 1), (16, 1)])
def test_groups_of_query_heads(heads: int, kv_heads: int):
    case = cases.make_case([10, 0], [9, 4], steps=9, heads=heads, kv_heads=kv_heads, page=64, seed=heads)
    prefill(case, rows=16, block=64)


@pytest.mark.parametrize("page", [16, 64])
def test_e4m3_caches_by_bits_and_by_type_agree(page: int):
    case = cases.make_case([33, 0], [20, 11], steps=20, heads=2, kv_heads=2, page=page, seed=7)
    assert torch.equal(prefill(case, "e4m3"), prefill(case, "u8"))


def test_the_whole_op_is_the_dialects():
    case = cases.make_case([20, 0, 12], [9, 9, 5], steps=9, heads=6, kv_heads=1, page=16, seed=8)
    q, k_cache, v_cache = cases.run_rope_kv(case, "bf16", 4)
    got = cases.run_prefill(case, q, k_cache, v_cache, kv="bf16", rows=16, block=32)
    clean = [cache.nan_to_num(0.0) for cache in (case.k_cache, case.v_cache)]
    inputs = [x.nan_to_num(0.0) for x in (case.q, case.k, case.v, case.s)]
    tables = (case.q_weight, case.k_weight, case.cos, case.sin, case.past, case.new, case.table)
    out, _, v_want = dialect.reference(*inputs, *tables, *clean, *case.widths)
    for row, new in enumerate(case.new.tolist()):
        torch.testing.assert_close(got[row, :new].float(), out[row, :new].float(), rtol=5 * ULP, atol=5 * ULP)
    assert torch.equal(v_cache.nan_to_num(0.0), v_want)


def test_one_query_gives_what_decode_gives():
    case = cases.make_case([0, 15, 16, 70], [1, 1, 1, 1], heads=6, seed=10)
    q, k_cache, v_cache = cases.filled(case, "bf16")
    by_prefill = cases.run_prefill(case, q, k_cache, v_cache, kv="bf16", rows=16, block=32)
    by_decode = cases.run_decode(case, q, k_cache, v_cache, kv="bf16", block=32, splits=0)
    torch.testing.assert_close(by_prefill[:, 0].float(), by_decode.float(), rtol=2 * ULP, atol=ULP)
