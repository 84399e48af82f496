"""Inputs of every plugin at a rank's true sizes, as the plugins take them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from sizes import DEVICE, M2, Slice, activations, fp8_weight

Tensor = torch.Tensor


@dataclass(frozen=True)
class Call:
    """A plugin's name, attributes and inputs; ``weight_bytes`` the least that a run must read of weights or
    cache."""

    name: str
    attributes: dict[str, Any]
    inputs: list[Tensor]
    weight_bytes: int = 0


def linear(tokens: int, rows: int, columns: int) -> Call:
    weight, scale = fp8_weight(rows, columns)
    size = weight.numel() + 4 * scale.numel()
    attributes = {"block_n": M2.block, "block_k": M2.block}
    return Call("M2Fp8Linear", attributes, [activations(tokens, columns), weight, scale], size)


@dataclass(frozen=True)
class Experts:
    """One layer's expert weights of a rank, kept for several calls."""

    w13: Tensor
    s13: Tensor
    w2: Tensor
    s2: Tensor
    bias: Tensor

    @classmethod
    def random(cls, size: Slice = M2) -> Experts:
        experts, hidden, inner = size.experts, size.hidden, size.intermediate
        w13, s13 = fp8_weight(2 * inner, hidden, stack=experts, parts=2, sides=size.sides)
        w2, s2 = fp8_weight(hidden, inner, stack=experts, sides=size.sides[::-1])
        return cls(w13, s13, w2, s2, torch.randn(size.experts, device=DEVICE) * 0.1)


def moe(experts: Experts, tokens: int, size: Slice = M2) -> Call:
    """``weight_bytes``: of the distinct experts that these logits choose."""
    x = activations(tokens, size.hidden)
    logits = torch.randn(tokens, size.experts, device=DEVICE)
    chosen = distinct(logits, experts.bias, size.top_k)
    blocks = {"block_n": size.inner_block, "block_k": size.block}
    attributes = {"top_k": size.top_k, "first_expert": 0, **blocks}
    inputs = [x, logits, experts.bias, experts.w13, experts.s13, experts.w2, experts.s2]
    return Call("M2MoeFp8", attributes, inputs, chosen * size.expert_bytes)


def distinct(logits: Tensor, bias: Tensor, top_k: int) -> int:
    """How many experts a batch chooses."""
    return int((torch.sigmoid(logits) + bias).topk(top_k).indices.unique().numel())


def rope_tables(positions: int, size: Slice = M2, theta: float = 5e6) -> tuple[Tensor, Tensor]:
    steps = torch.arange(0, size.rotary_dim, 2, device=DEVICE, dtype=torch.float64) / size.rotary_dim
    angles = torch.arange(positions, device=DEVICE, dtype=torch.float64)[:, None] * theta**-steps
    return angles.cos().float(), angles.sin().float()


@dataclass(frozen=True)
class Rows:
    """Sequences in a paged cache: ``past`` and ``new`` tokens of each, their pages dealt at random."""

    past: list[int]
    new: list[int]
    page: int = 64
    fp8: bool = False

    @property
    def steps(self) -> int:
        return max(self.new)

    def call(self, size: Slice = M2) -> Call:
        """M2PagedAttention over a random cache. Pages beyond a row's end hold NaN, the table beyond its last
        page nonsense."""
        batch, steps = len(self.past), self.steps
        lengths = [past + new for past, new in zip(self.past, self.new, strict=True)]
        each = [-(-length // self.page) for length in lengths]
        pages = sum(each) + 1
        caches = [self._cache(pages, size) for _ in range(2)]
        table = torch.full((batch, max(each) + 1), -7, dtype=torch.int32, device=DEVICE)
        dealt = torch.randperm(pages, device=DEVICE).int()
        for row, (count, length) in enumerate(zip(each, lengths, strict=True)):
            own, dealt = dealt[:count], dealt[count:]
            table[row, :count] = own
            if length % self.page and not self.fp8:
                for cache in caches:
                    cache[own[-1].long(), length % self.page :] = float("nan")
        sums = torch.rand(batch, steps, 2, device=DEVICE) * 100 + size.q_total
        cos, sin = rope_tables(max(lengths) + 1, size)
        widths = (size.q_width, size.kv_width, size.kv_width)
        q, k, v = activations(batch, steps, sum(widths)).split(widths, -1)
        weights = [activations(width).abs() + 0.5 for width in widths[:2]]
        i32 = {"dtype": torch.int32, "device": DEVICE}
        lens = [torch.tensor(values, **i32) for values in (self.past, self.new)]  # type: ignore[arg-type]
        attributes = {
            "heads": size.heads, "kv_heads": size.kv_heads, "head_dim": size.head_dim,
            "rotary_dim": size.rotary_dim, "eps": size.eps, "scale": size.head_dim**-0.5,
            "q_total": size.q_total, "k_total": size.k_total,
            "q_stride": sum(widths), "k_stride": sum(widths), "v_stride": sum(widths),
        }  # fmt: skip
        read = sum(lengths) * 2 * size.kv_width * caches[0].element_size()
        inputs = [q, k, v, sums, *weights, cos, sin, *lens, table, *caches]
        return Call("M2PagedAttention", attributes, inputs, read)

    def _cache(self, pages: int, size: Slice) -> Tensor:
        cache = activations(pages, self.page, size.kv_heads, size.head_dim)
        return cache.to(torch.float8_e4m3fn) if self.fp8 else cache


def narrow(size: Slice = M2) -> Slice:
    """The same at tp 8: 192 of the inner width, and scale blocks of 64 along it (w13's 64 × 128, w2's 128 × 64)."""
    return replace(size, intermediate=192, inner_block=64)
