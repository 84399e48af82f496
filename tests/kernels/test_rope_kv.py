"""rope_kv against the dialect's arithmetic and, bit for bit, against the formula in its docstring."""

from __future__ import annotations

import dataclasses

import attention_cases as cases
import pytest
import torch
from triton.runtime import interpreter

from mm2c.dialect import attention_maths as maths


def expected(case: cases.Case) -> tuple[torch.Tensor, torch.Tensor]:
    """q [B, S, HQ, D] and k [B, S, HK, D] by the kernel's definition: f32 rotation, rounded once."""
    w, bf = case.widths, torch.bfloat16
    positions = case.past[:, None].long() + torch.arange(case.q.shape[1])
    at = positions.clamp(max=len(case.cos) - 1)
    cosine, sine = case.cos[at][:, :, None], case.sin[at][:, :, None]
    found = []
    parts = ((case.q, 0, w.q_total, case.q_weight), (case.k, 1, w.k_total, case.k_weight))
    for x, column, total, weight in parts:
        scaled = (x.float() * torch.rsqrt(case.s[..., column, None] / total + w.eps)).to(bf)
        y = (weight.float() * scaled.float()).to(bf).float().unflatten(-1, (-1, cases.HEAD))
        first, second, rest = y.split([32, 32, 64], -1)
        turned = [first * cosine - second * sine, second * cosine + first * sine, rest]
        found.append(torch.cat(turned, -1).to(bf))
    return found[0], found[1]


def written(case: cases.Case, cache: torch.Tensor) -> list[torch.Tensor]:
    """What the cache holds at each row's new positions: [new, HK, D]."""
    rows = []
    for row, (past, new) in enumerate(zip(case.past.tolist(), case.new.tolist(), strict=True)):
        at = past + torch.arange(new)
        rows.append(cache[case.table[row][at // case.page].long(), at % case.page])
    return rows


def check(case: cases.Case, kv: str, block: int) -> None:
    low = case.with_cache(kv)
    q_out, k_cache, v_cache = cases.run_rope_kv(low, kv, block)
    q, k = expected(case)
    reference = maths.rows_reference(
        *(case.q, case.k, case.v, case.s, case.q_weight, case.k_weight, case.cos, case.sin, case.past),
        case.widths,
    )
    for row, new in enumerate(case.new.tolist()):
        assert torch.equal(q_out[row, :new], q[row, :new].flatten(1))
        assert not q_out[row, new:].any()
        torch.testing.assert_close(
            q_out[row, :new].float(), reference[0][row, :new].flatten(1).float(), rtol=2e-2, atol=3e-2
        )
    kind = low.k_cache.dtype
    places = zip(written(low, k_cache.view(kind)), written(low, v_cache.view(kind)), strict=True)
    for row, (keys, values) in enumerate(places):
        new = int(case.new[row])
        value_rows = case.v[row, :new].view(new, case.widths.kv_heads, cases.HEAD)
        assert torch.equal(cases.raw(keys), cases.raw(k[row, :new].to(kind)))
        assert torch.equal(cases.raw(values), cases.raw(value_rows.to(kind)))

    for before, after in ((low.k_cache, k_cache), (low.v_cache, v_cache)):  # and nothing else was touched
        again = cases.raw(after.clone().view(kind))
        for row, (past, new) in enumerate(zip(case.past.tolist(), case.new.tolist(), strict=True)):
            at = past + torch.arange(new)
            place = (case.table[row][at // case.page].long(), at % case.page)
            again[place] = cases.raw(before)[place]
        assert torch.equal(again, cases.raw(before))


@pytest.mark.parametrize("kv", ["bf16", "e4m3", "u8"])
@pytest.mark.parametrize("block", [1, 4])
def test_prefill_over_page_edges(kv: str, block: int):
    check(cases.make_case([14, 17, 3], [3, 1, 0], steps=3, heads=6, kv_heads=1, seed=1), kv, block)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "page"), [(2, 2, 16), (12, 2, 64), (8, 1, 64), (16, 1, 16), (5, 5, 64)]
)
def test_decode_with_any_group(heads: int, kv_heads: int, page: int):
    case = cases.make_case(
        [0, page - 1, page, 200], [1, 1, 1, 0], heads=heads, kv_heads=kv_heads, page=page, seed=2
    )
    check(case, "bf16", 4)


def test_contiguous_inputs_give_the_same():
    lengths = ([5, 0], [1, 2])
    strided = cases.run_rope_kv(cases.make_case(*lengths, steps=2, seed=3), "bf16", 4)
    contiguous = cases.run_rope_kv(cases.make_case(*lengths, steps=2, seed=3, contiguous=True), "bf16", 4)
    for a, b in zip(strided, contiguous, strict=True):
        assert torch.equal(cases.raw(a), cases.raw(b))


@pytest.mark.parametrize("page", [-1, 10**6, 2**31 - 1, -(2**31), 6])
def test_a_page_out_of_range_is_never_written(page: int):
    case = cases.make_case([20], [4], steps=4, seed=4)
    assert len(case.k_cache) <= 6
    case.table[0, 1] = page
    _, k_cache, v_cache = cases.run_rope_kv(case, "bf16", 4)
    assert torch.equal(cases.raw(k_cache), cases.raw(case.k_cache))
    assert torch.equal(cases.raw(v_cache), cases.raw(case.v_cache))


def test_a_debug_build_stops_at_a_page_out_of_range(monkeypatch: pytest.MonkeyPatch):
    builder = (
        interpreter.interpreter_builder
    )  # its assertions are off, as they are without the compiler's debug
    monkeypatch.setattr(
        builder, "options", dataclasses.replace(builder.options, debug=True, sanitize_overflow=False)
    )
    case = cases.make_case([20], [4], steps=4, seed=4)
    cases.run_rope_kv(case, debug=True)
    case.table[0, 1] = len(case.k_cache)
    with pytest.raises(Exception, match="page number out of range"):
        cases.run_rope_kv(case, debug=True)


def test_positions_past_the_table_are_not_written():
    case = cases.make_case([30], [4], steps=4, seed=5)
    object.__setattr__(case, "table", case.table[:, :2].contiguous())  # room for 32 positions
    _, k_cache, _ = cases.run_rope_kv(case, "bf16")
    changed = (cases.raw(k_cache) != cases.raw(case.k_cache)).any(-1).any(-1)
    assert changed.nonzero().tolist() == [[int(case.table[0, 1]), 14], [int(case.table[0, 1]), 15]]


def test_values_beyond_e4m3_saturate():
    case = cases.make_case([0], [1], seed=6)
    case.v[0, 0, :4] = torch.tensor([1e4, -1e4, 460.0, -0.0])
    for kv in ("e4m3", "u8"):
        low = case.with_cache(kv)
        _, _, v_cache = cases.run_rope_kv(low, kv)
        place = int(case.table[0, 0])
        assert v_cache.view(torch.uint8)[place, 0, 0, :4].tolist() == [0x7E, 0xFE, 0x7E, 0x80]
