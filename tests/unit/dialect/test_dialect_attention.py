"""M2Attention and M2PagedAttention: bodies against references, and both against plain causal attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from function_body import assert_agree


@dataclass(frozen=True)
class Case:
    name: str
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    steps: int
    capacity: int
    past: tuple[int, ...]
    new: tuple[int, ...]


CASES = [
    Case("prefill", 4, 2, 16, 8, 5, 8, (0,), (5,)),
    Case("decode", 6, 2, 32, 16, 1, 24, (3, 0, 23), (1, 1, 1)),
    Case("ragged", 4, 4, 16, 16, 4, 20, (0, 7, 16), (4, 1, 2)),
    Case("padded", 8, 1, 8, 4, 6, 12, (2, 6, 0, 11), (3, 6, 0, 1)),
    Case("chunk", 3, 3, 24, 10, 7, 30, (9,), (7,)),
    Case("odd", 10, 5, 6, 2, 3, 11, (1, 8), (2, 3)),
    Case("past the table", 2, 2, 8, 8, 5, 16, (11, 14), (5, 1)),
]


def attributes(case: Case) -> dict[str, Any]:
    return {
        "heads": case.heads,
        "kv_heads": case.kv_heads,
        "head_dim": case.head_dim,
        "rotary_dim": case.rotary_dim,
        "eps": 1e-6,
        "scale": case.head_dim**-0.5,
        "q_total": 2 * case.heads * case.head_dim,  # as on one rank of two
        "k_total": 2 * case.kv_heads * case.head_dim,
    }


def projections(case: Case) -> list[torch.Tensor]:
    """All inputs up to new_len; the rope table ends with the cache."""
    torch.manual_seed(len(case.name))
    rows, q_width, kv_width = len(case.past), case.heads * case.head_dim, case.kv_heads * case.head_dim
    q, k, v = (torch.randn(rows, case.steps, width) for width in (q_width, kv_width, kv_width))
    s = torch.stack([q.square().sum(-1), k.square().sum(-1)], -1) * 2
    weights = [1 + 0.1 * torch.randn(q_width), 1 + 0.1 * torch.randn(kv_width)]
    frequency = 100.0 ** -(torch.arange(0, case.rotary_dim, 2) / case.rotary_dim)
    angle = torch.arange(case.capacity)[:, None] * frequency
    lengths = [torch.tensor(x, dtype=torch.int32) for x in (case.past, case.new)]
    return [q, k, v, s, *weights, angle.cos(), angle.sin(), *lengths]


def caches(case: Case) -> list[torch.Tensor]:
    shape = (len(case.past), case.kv_heads, case.capacity, case.head_dim)
    return [torch.randn(shape), torch.randn(shape)]


def check_writes(case: Case, before: torch.Tensor, after: torch.Tensor) -> None:
    """Only positions past … past + new - 1 changed. Caches [B, kv_heads, L, D]."""
    for row, (past, new) in enumerate(zip(case.past, case.new, strict=True)):
        changed = (before[row] != after[row]).any(-1).any(0).nonzero()[:, 0].tolist()
        assert changed == list(range(past, past + new))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows(case: Case) -> None:
    inputs, cache = projections(case), caches(case)
    out, k_out, v_out = assert_agree("M2Attention", [*inputs, *cache], **attributes(case))
    assert torch.isfinite(out).all()
    check_writes(case, cache[0], k_out)
    check_writes(case, cache[1], v_out)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("page", [1, 4, 5])
def test_pages_equal_rows(case: Case, page: int) -> None:
    inputs, cache = projections(case), caches(case)
    out, k_out, v_out = assert_agree("M2Attention", [*inputs, *cache], **attributes(case))
    rows = len(case.past)
    pages = -(-case.capacity // page)
    order = torch.randperm(rows * pages + 3)[: rows * pages].view(rows, pages)
    paged = []
    for tensor in cache:
        padded = torch.zeros(rows, case.kv_heads, pages * page, case.head_dim)
        padded[:, :, : case.capacity] = tensor
        pool = torch.zeros(rows * pages + 3, page, case.kv_heads, case.head_dim)
        pool[order] = padded.transpose(1, 2).unflatten(1, (pages, page))
        paged.append(pool)
    table = order.to(torch.int32)
    for row, (past, new) in enumerate(zip(case.past, case.new, strict=True)):
        table[row, -(-max(past + new, 1) // page) :] = -1  # the rest of a row's table is unused
    got = assert_agree("M2PagedAttention", [*inputs, table, *paged], **attributes(case))
    for row, new in enumerate(case.new):
        torch.testing.assert_close(got[0][row, :new], out[row, :new], rtol=0, atol=1e-5)
    assert torch.isfinite(got[0]).all()
    for pool, before, after in zip(got[1:], paged, (k_out, v_out), strict=True):
        view = pool[order].flatten(1, 2).transpose(1, 2)[:, :, : case.capacity]
        torch.testing.assert_close(view, after, rtol=0, atol=1e-6)
        assert torch.equal(pool[-3:][:, :0], before[-3:][:, :0])


def test_chunks_equal_one_prefill() -> None:
    whole = Case("whole", 4, 2, 16, 8, 9, 12, (0,), (9,))
    inputs, cache = projections(whole), caches(whole)
    out = assert_agree("M2Attention", [*inputs, *cache], **attributes(whole))[0]
    pieces = []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        parts = [x[:, start:stop] for x in inputs[:4]]
        lengths = [torch.tensor([x], dtype=torch.int32) for x in (start, stop - start)]
        piece, *cache = assert_agree(
            "M2Attention", [*parts, *inputs[4:8], *lengths, *cache], **attributes(whole)
        )
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), out, rtol=0, atol=1e-5)


def test_rows_do_not_touch_each_other() -> None:
    both = Case("both", 4, 2, 16, 8, 3, 10, (2, 5), (3, 2))
    inputs, cache = projections(both), caches(both)
    out = assert_agree("M2Attention", [*inputs, *cache], **attributes(both))[0]
    for row in range(2):
        alone = [x[row : row + 1] if i not in (4, 5, 6, 7) else x for i, x in enumerate(inputs)]
        single = assert_agree(
            "M2Attention", [*alone, *(c[row : row + 1] for c in cache)], **attributes(both)
        )[0]
        torch.testing.assert_close(single[0], out[row], rtol=0, atol=1e-5)
