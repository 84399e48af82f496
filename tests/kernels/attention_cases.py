"""Inputs, launches and references for the tests of rope_kv and the attention kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton

from mm2c.dialect import attention_maths as maths
from mm2c_plugins.kernels.attention_decode import attention_decode
from mm2c_plugins.kernels.attention_merge import attention_merge
from mm2c_plugins.kernels.attention_prefill import attention_prefill
from mm2c_plugins.kernels.rope_kv import rope_kv

HEAD, ROTARY = 128, 64
EPS = 1e-6
SCALE = HEAD**-0.5
FLAGS = {"PDL": False, "DEBUG": False}
CACHES = {"bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "u8": torch.uint8}


@dataclass(frozen=True)
class Case:
    """One call of M2PagedAttention; the caches are poisoned with NaN outside the rows' past positions."""

    q: torch.Tensor  # views of one [B, S, q|k|v] tensor, as a fused projection gives
    k: torch.Tensor
    v: torch.Tensor
    s: torch.Tensor
    q_weight: torch.Tensor
    k_weight: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    past: torch.Tensor
    new: torch.Tensor
    table: torch.Tensor
    k_cache: torch.Tensor  # bf16 or float8_e4m3fn [pages, page, HK, D]
    v_cache: torch.Tensor
    widths: maths.AttentionWidths

    @property
    def page(self) -> int:
        return self.k_cache.shape[1]

    def with_cache(self, kv: str) -> Case:
        """The same numbers, rounded to e4m3 unless kv is bf16."""
        if kv == "bf16":
            return self
        low = torch.float8_e4m3fn
        return replace(self, k_cache=self.k_cache.to(low), v_cache=self.v_cache.to(low))


def make_case(
    past: list[int],
    new: list[int],
    *,
    steps: int = 1,
    heads: int = 6,
    kv_heads: int = 1,
    page: int = 16,
    seed: int = 0,
    contiguous: bool = False,
) -> Case:
    g = torch.Generator().manual_seed(seed)
    rows, bf = len(past), torch.bfloat16

    def normal(*shape: int, by: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * by).to(bf)

    q_width, k_width = heads * HEAD, kv_heads * HEAD
    qkv = normal(rows, steps, q_width + 2 * k_width)
    for row, real in enumerate(new):
        qkv[row, real:] = float("nan")  # padding may hold anything
    q, k, v = qkv.split([q_width, k_width, k_width], -1)
    if contiguous:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    q_total, k_total = 2 * q_width, 3 * k_width  # as if other ranks held more
    s = torch.stack([q.float().square().sum(-1) * 2.1, k.float().square().sum(-1) * 2.7], -1)

    needed = [-(-(p + n) // page) for p, n in zip(past, new, strict=True)]
    pages, columns = sum(needed) + 3, max(max(needed), 1) + 3
    free = torch.randperm(pages, generator=g).tolist()
    junk = torch.tensor([-1, -(2**31), 2**31 - 1, pages, 10**6, -7], dtype=torch.int32)
    table = junk[torch.randint(len(junk), (rows, columns), generator=g)].clone()
    caches = [torch.full((pages, page, kv_heads, HEAD), float("nan"), dtype=bf) for _ in range(2)]
    for row, count in enumerate(needed):
        own = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int32)
        table[row, :count] = own
        at = torch.arange(past[row])
        for cache in caches:
            cache[own[at // page].long(), at % page] = normal(past[row], kv_heads, HEAD)

    length = max([p + steps for p in past])
    angle = torch.arange(length)[:, None] * 1e4 ** (-torch.arange(0, ROTARY, 2) / ROTARY)
    ints = {"dtype": torch.int32}
    return Case(
        q,
        k,
        v,
        s,
        1 + normal(q_width, by=0.3),
        1 + normal(k_width, by=0.3),
        angle.cos(),
        angle.sin(),
        torch.tensor(past, **ints),
        torch.tensor(new, **ints),
        table,
        *caches,
        maths.AttentionWidths(heads, kv_heads, HEAD, ROTARY, EPS, SCALE, q_total, k_total),
    )


def raw(cache: torch.Tensor) -> torch.Tensor:
    """The bits of a cache."""
    return cache.view({2: torch.int16, 1: torch.uint8}[cache.element_size()])


def stored(case: Case, kv: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of the case's caches as the kernels get them."""
    k_cache, v_cache = (cache.clone() for cache in (case.k_cache, case.v_cache))
    return (raw(k_cache), raw(v_cache)) if kv == "u8" else (k_cache, v_cache)


def cache_flags(kv: str) -> dict[str, bool]:
    return {"KV8": kv != "bf16", "U8": kv == "u8"}


def run_rope_kv(
    case: Case, kv: str = "bf16", block: int = 1, debug: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(q_out [B, S, HQ·D], k_cache, v_cache) after the kernel."""
    rows, steps = case.q.shape[:2]
    w = case.widths
    q_out = torch.full((rows, steps, w.heads * HEAD), float("nan"), dtype=torch.bfloat16)
    k_cache, v_cache = stored(case, kv)
    grid = (rows * steps, -(-w.heads // block) + 2 * -(-w.kv_heads // block))
    rope_kv[grid](
        *(case.q, case.k, case.v, case.s, case.q_weight, case.k_weight, case.cos, case.sin),
        *(case.past, case.new, case.table, q_out, k_cache, v_cache),
        *(steps, case.table.shape[1], case.cos.shape[0], len(k_cache), w.heads, w.kv_heads),
        *(case.q.stride(1), case.k.stride(1), case.v.stride(1), float(w.q_total), float(w.k_total), w.eps),
        D=HEAD,
        R=ROTARY,
        PAGE=case.page,
        HB=block,
        **cache_flags(kv),
        **{**FLAGS, "DEBUG": debug},
    )
    return q_out, k_cache, v_cache


def filled(case: Case, kv: str, seed: int = 99) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(q, k_cache, v_cache) as after some rope_kv: random queries (zero for padding) and new positions."""
    g = torch.Generator().manual_seed(seed)
    rows, steps = case.q.shape[:2]
    q = torch.randn(rows, steps, case.widths.heads * HEAD, generator=g).to(torch.bfloat16)
    caches = [case.k_cache.clone(), case.v_cache.clone()]
    for row, (past, new) in enumerate(zip(case.past.tolist(), case.new.tolist(), strict=True)):
        q[row, new:] = 0
        at = past + torch.arange(new)
        for cache in caches:
            values = torch.randn(new, case.widths.kv_heads, HEAD, generator=g)
            raw(cache)[case.table[row][at // case.page].long(), at % case.page] = raw(values.to(cache.dtype))
    return q, *(raw(cache) if kv == "u8" else cache for cache in caches)


def run_decode(
    case: Case,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    kv: str,
    block: int,
    splits: int,
) -> torch.Tensor:
    """attention_decode, and attention_merge where splits > 0; 0 is the direct variant. → [B, HQ·D]"""
    rows, w = len(q), case.widths
    direct = splits == 0
    splits = max(splits, 1)
    part = torch.full((rows, w.heads, splits, HEAD), float("nan"))
    lse = torch.full((rows, w.heads, splits), float("nan"))
    out = torch.full((rows, w.heads * HEAD), float("nan"), dtype=torch.bfloat16)
    attention_decode[(w.kv_heads, splits, rows)](
        *(q, k_cache, v_cache, case.table, case.past, case.new, part, lse, out),
        *(case.table.shape[1], len(k_cache), w.heads, w.kv_heads, splits, w.scale),
        D=HEAD,
        GP=16,
        PAGE=case.page,
        BN=block,
        W=block // 16,
        DIRECT=direct,
        **cache_flags(kv),
        **FLAGS,
    )
    if not direct:
        attention_merge[(rows * w.heads,)](part, lse, out, splits, D=HEAD, SP=64, PDL=False)
    return out


def run_prefill(
    case: Case,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    kv: str,
    rows: int,
    block: int,
) -> torch.Tensor:
    """attention_prefill → [B, S, HQ·D]."""
    batch, steps = q.shape[:2]
    w = case.widths
    out = torch.full((batch, steps, w.heads * HEAD), float("nan"), dtype=torch.bfloat16)
    attention_prefill[(triton.cdiv(steps, rows), w.heads, batch)](
        *(q, k_cache, v_cache, case.table, case.past, case.new, out),
        *(steps, case.table.shape[1], len(k_cache), w.heads, w.kv_heads, w.scale),
        D=HEAD,
        PAGE=case.page,
        BM=rows,
        BN=block,
        **cache_flags(kv),
        **FLAGS,
    )
    return out


def attention(case: Case, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> torch.Tensor:
    """Exact attention (f64) of the given q over the given caches; zeros for padding. f64 [B, S, HQ·D]."""
    batch, steps = q.shape[:2]
    w = case.widths
    queries = q.double().view(batch, steps, w.kv_heads, w.heads // w.kv_heads, HEAD)
    out = torch.zeros(batch, steps, w.heads, HEAD, dtype=torch.float64)
    for row in range(batch):
        for i in range(int(case.new[row])):
            at = torch.arange(int(case.past[row]) + i + 1)
            place = (case.table[row][at // case.page].long(), at % case.page)
            keys, values = (cache.float()[place].double() for cache in (k_cache, v_cache))
            score = torch.einsum("hgd,nhd->hgn", queries[row, i], keys) * w.scale
            out[row, i] = torch.einsum("hgn,nhd->hgd", score.softmax(-1), values).reshape(w.heads, HEAD)
    return out.flatten(2)
