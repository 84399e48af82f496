"""Launches of the experts' kernels as the plugin makes them, weights for them, and the exact result."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from moe_groups import Groups
from torch import Tensor

from mm2c.dialect.blocks import dequantize_reference
from mm2c_plugins.kernels.moe_combine import moe_combine
from mm2c_plugins.kernels.moe_down import moe_down
from mm2c_plugins.kernels.moe_gate_up import moe_gate_up
from mm2c_plugins.kernels.moe_small_down import moe_small_down
from mm2c_plugins.kernels.moe_small_gate_up import moe_small_gate_up


@dataclass(frozen=True)
class Experts:
    """Weights of E local experts from ``first`` on, and of tokens: x bf16[T, C]. w13 and w2 are e4m3 or bf16.

    A scale serves block_n × block_k numbers of w13, and block_k × block_n of w2.
    """

    x: Tensor
    w13: Tensor
    w13_scale: Tensor
    w2: Tensor
    w2_scale: Tensor
    first: int = 0
    block_n: int = 128
    block_k: int = 128

    @property
    def scaled(self) -> bool:
        return self.w13.dtype == torch.float8_e4m3fn

    def dense(self) -> tuple[Tensor, Tensor]:
        if not self.scaled:
            return self.w13.float(), self.w2.float()
        return (
            dequantize_reference(self.w13, self.w13_scale, self.block_n, self.block_k, parts=2),
            dequantize_reference(self.w2, self.w2_scale, self.block_k, self.block_n),
        )


def make_experts(
    tokens: int,
    experts: int,
    c: int,
    i: int,
    *,
    first: int = 0,
    block: tuple[int, int] = (128, 128),
    fp8: bool = True,
) -> Experts:
    """Weights of all e4m3 codes but NaN (zeros of both signs, subnormals, ±448), with scales of about 1/1000."""
    x = torch.randn(tokens, c).to(torch.bfloat16)
    shapes = (experts, 2 * i, c), (experts, c, i)
    inner, width = math.ceil(i / block[0]), math.ceil(c / block[1])
    scales = [torch.rand(experts, *grid) * 2e-3 + 1e-4 for grid in ((2 * inner, width), (width, inner))]
    if fp8:
        w13, w2 = (all_codes(shape) for shape in shapes)
    else:
        w13, w2 = ((torch.randn(shape) * 0.1).to(torch.bfloat16) for shape in shapes)
    return Experts(x, w13, scales[0], w2, scales[1], first, *block)


def all_codes(shape: tuple[int, ...]) -> Tensor:
    """e4m3 numbers of every code but the two NaN."""
    codes = torch.randint(0, 254, shape, dtype=torch.uint8)
    return torch.where(codes >= 127, codes + 1, codes).view(torch.float8_e4m3fn)  # 127 and 255 are NaN


def choose(tokens: int, experts: int, k: int) -> tuple[Tensor, Tensor]:
    """Weights f32[T, k] and different ids i32[T, k] for every token."""
    ids = torch.stack([torch.randperm(experts)[:k] for _ in range(tokens)]).to(torch.int32)
    weights = torch.rand(tokens, k) + 0.1
    return weights / weights.sum(1, keepdim=True), ids


def _filled(*shape: int) -> Tensor:
    """What must be written before it is read is NaN."""
    return torch.full(shape, math.nan, dtype=torch.bfloat16)


def _codes(w: Tensor, u8: bool) -> Tensor:
    return w.view(torch.uint8) if u8 else w


def _constants(e: Experts, u8: bool, **tile: int) -> dict[str, int]:
    return dict(tile, SCALED=e.scaled, U8=u8, PDL=False)


def gate_up(e: Experts, k: int, groups: Groups, bm: int, bn: int, bk: int, u8: bool = False) -> Tensor:
    """moe_gate_up → h bf16[T·k, I] in sorted order."""
    (t, c), i = e.x.shape, e.w2.shape[2]
    h = _filled(t * k, i)
    grid = (math.ceil(i / bn), len(groups.tile_expert))
    moe_gate_up[grid](
        e.x,
        _codes(e.w13, u8),
        e.w13_scale,
        *groups.all(),
        h,
        c,
        i,
        k,
        e.block_n,
        e.block_k,
        **_constants(e, u8, BM=bm, BN=bn, BK=bk),
    )
    return h


def down(
    e: Experts, h: Tensor, weights: Tensor, groups: Groups, bm: int, bn: int, bk: int, u8: bool = False
) -> Tensor:
    """moe_down → y bf16[T·k, C] at the pair's place."""
    c, i = e.w2.shape[1:]
    y = _filled(len(h), c)
    grid = (math.ceil(c / bn), len(groups.tile_expert))
    moe_down[grid](
        h,
        _codes(e.w2, u8),
        e.w2_scale,
        groups.order,
        weights,
        *groups.tiles(),
        y,
        c,
        i,
        weights.shape[1],
        e.block_k,
        e.block_n,
        **_constants(e, u8, BM=bm, BN=bn, BK=bk),
    )
    return y


def combine(e: Experts, y: Tensor, ids: Tensor) -> Tensor:
    (t, k), c = ids.shape, y.shape[1]
    out = _filled(t, c)
    grid = (math.ceil(c / 128), t)
    moe_combine[grid](y, ids, out, c, k, e.first, len(e.w13), BC=128, SLOTS=16, PDL=False)
    return out


def grouped(
    e: Experts, weights: Tensor, ids: Tensor, groups: Groups, *, bm: int, bn: int, bk: int, u8: bool = False
) -> Tensor:
    """moe_gate_up, moe_down and moe_combine on planned groups → bf16[T, C]."""
    h = gate_up(e, ids.shape[1], groups, bm, bn, bk, u8)
    return combine(e, down(e, h, weights, groups, bm, bn, bk, u8), ids)


def small_gate_up(
    e: Experts,
    weights: Tensor,
    ids: Tensor,
    bn: int,
    bk: int,
    u8: bool = False,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """moe_small_gate_up → h bf16[T·K, I] by pair; with ``logits`` it routes and writes ``weights`` and ``ids``."""
    (t, c), k, i = e.x.shape, ids.shape[1], e.w2.shape[2]
    h = _filled(t * k, i)
    route = logits is not None
    grid = (math.ceil(i / bn), t * k)
    moe_small_gate_up[grid](
        e.x,
        logits if route else weights,
        bias if route else weights,
        _codes(e.w13, u8),
        e.w13_scale,
        weights,
        ids,
        h,
        c,
        i,
        logits.shape[1] if logits is not None else 0,
        k,
        e.first,
        len(e.w13),
        e.block_n,
        e.block_k,
        **_constants(e, u8, BN=bn, BK=bk, EP=256, ROUTE=route),
    )
    return h


def small_down(
    e: Experts, h: Tensor, weights: Tensor, ids: Tensor, bn: int, bk: int, u8: bool = False
) -> Tensor:
    """moe_small_down → bf16[T, C]."""
    (t, k), (c, i) = ids.shape, e.w2.shape[1:]
    out = _filled(t, c)
    moe_small_down[(math.ceil(c / bn), t)](
        h,
        _codes(e.w2, u8),
        e.w2_scale,
        weights,
        ids,
        out,
        c,
        i,
        k,
        e.first,
        len(e.w13),
        e.block_k,
        e.block_n,
        **_constants(e, u8, BN=bn, BK=bk),
    )
    return out


def small(
    e: Experts,
    weights: Tensor,
    ids: Tensor,
    *,
    bn: int,
    bk: int,
    u8: bool = False,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    h = small_gate_up(e, weights, ids, bn, bk, u8, logits, bias)
    return small_down(e, h, weights, ids, bn, bk, u8)


def expected(e: Experts, weights: Tensor, ids: Tensor) -> Tensor:
    """The same sums in f64 with h rounded to bf16, as the kernels keep it: f64[T, C]."""
    w13, w2 = (w.double() for w in e.dense())
    total = torch.zeros(e.x.shape, dtype=torch.float64)
    for token in range(len(e.x)):
        for slot in range(ids.shape[1]):
            expert = int(ids[token, slot]) - e.first
            if 0 <= expert < len(w13):
                gate, up = (w13[expert] @ e.x[token].double()).chunk(2)
                h = (torch.nn.functional.silu(gate) * up).to(torch.bfloat16).double()
                total[token] += weights[token, slot].double() * (w2[expert] @ h)
    return total


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Of the worst token: the norm of its difference over its norm; 0 / 0 is 0."""
    assert got.isfinite().all()
    difference = (got.double() - wanted).norm(dim=1)
    return float((difference / wanted.norm(dim=1).clamp(min=1e-30)).max())
