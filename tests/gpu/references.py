"""What the kernels must compute, in float32 or float64 on the device; nothing here shares code with them.

Formulas: the MiniMax-M2 modules of transformers (RMSNorm over the whole width of q and k, partial NeoX rotation,
sigmoid routing with a bias for the choice alone), block-scaled e4m3 weights as in the released checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor


def exact() -> None:
    """No TF32 and no reduced-precision sums in what follows."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖ in f64; NaN where there is one in either."""
    difference = found.double() - expected.double()
    return float(difference.norm() / expected.double().norm().clamp_min(1e-30))


def dequantized(weight: Tensor, scale: Tensor, sides: tuple[int, int], parts: int = 1) -> Tensor:
    """e4m3[N, K] and f32[parts·⌈N/parts/n⌉, ⌈K/k⌉] of blocks of sides (n, k) → f32[N, K]."""
    rows, columns = weight.shape
    grid = scale.repeat_interleave(sides[1], 1)[:, :columns]
    each = [part.repeat_interleave(sides[0], 0)[: rows // parts] for part in grid.chunk(parts)]
    return weight.float() * torch.cat(each)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, block: int) -> Tensor:
    return x.double() @ dequantized(weight, scale, (block, block)).double().T


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual  # bf16, as the module adds
    inverse = (total.double().square().mean(-1, keepdim=True) + eps).rsqrt()
    return weight.double() * (total.double() * inverse), total


def routing(logits: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Weights f64[T, k] and ids[T, k], best first, the lowest id among equals."""
    scores = torch.sigmoid(logits)
    ids = torch.sort(scores + bias, dim=-1, descending=True, stable=True).indices[:, :top_k]
    chosen = scores.double().gather(1, ids)
    return chosen / chosen.sum(-1, keepdim=True), ids


def experts(x: Tensor, weights: Tensor, ids: Tensor, w13: Tensor, s13: Tensor, w2: Tensor, s2: Tensor,
            sides: tuple[int, int]) -> Tensor:  # fmt: skip
    """f32[T, C]: every chosen expert's SwiGLU in float32, its inner activations rounded to bf16 as stored. ``sides``
    are those of w13's scale blocks; w2's are the same turned."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in ids.unique().tolist():
        token, slot = torch.where(ids == expert)
        gate, up = (x[token].float() @ dequantized(w13[expert], s13[expert], sides, parts=2).T).chunk(2, -1)
        inner = (torch.nn.functional.silu(gate) * up).to(torch.bfloat16).float()
        y = inner @ dequantized(w2[expert], s2[expert], sides[::-1]).T
        out.index_add_(0, token, y * weights[token, slot, None].float())
    return out


def square_sums(q: Tensor, k: Tensor) -> Tensor:
    return torch.stack([q.double().square().sum(-1), k.double().square().sum(-1)], -1)


def normed(x: Tensor, sums: Tensor, total: int, eps: float, weight: Tensor) -> Tensor:
    """bf16[..., N] from the sums of squares over the whole model's width."""
    scaled = (x.float() * torch.rsqrt(sums[..., None].float() / total + eps)).to(torch.bfloat16)
    return weight * scaled


def rotated(x: Tensor, cos: Tensor, sin: Tensor, position: Tensor) -> Tensor:
    """bf16[T, heads, D] with the first 2·half dimensions turned in f32; cos, sin f32[P, half]."""
    half = cos.shape[1]
    c, s = cos[position][:, None], sin[position][:, None]
    first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    turned = [(first * c - second * s).to(x.dtype), (second * c + first * s).to(x.dtype)]
    return torch.cat([*turned, rest], -1)


def attention(q: Tensor, keys: Tensor, values: Tensor, first: int, scale: float) -> Tensor:
    """q bf16[S, H, D] at positions first…, keys and values [L, Hkv, D] → f32[S, H, D]."""
    group = q.shape[1] // keys.shape[1]
    keys, values = (x.float().repeat_interleave(group, 1).transpose(0, 1) for x in (keys, values))
    scores = q.float().transpose(0, 1) @ keys.transpose(1, 2) * scale
    seen = (
        torch.arange(keys.shape[1], device=q.device) <= first + torch.arange(len(q), device=q.device)[:, None]
    )
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values).transpose(0, 1)


def paged(cache: Tensor, table: Tensor, length: int) -> Tensor:
    """The first ``length`` positions [length, Hkv, D] of a row whose pages ``table`` names."""
    page = cache.shape[1]
    pages = table[: -(-length // page)].long()
    return cache[pages].flatten(0, 1)[:length]
