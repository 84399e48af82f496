"""What attention over rows and over pages share: norm from sums of squares, partial RoPE, masked GQA."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from onnx.defs import OpSchema

from mm2c.dialect.body import FLOAT, INT64, Body
from mm2c.dialect.schema import F32, I32

if TYPE_CHECKING:
    from torch import Tensor


ATTRIBUTES = [
    ("heads", OpSchema.AttrType.INT),
    ("kv_heads", OpSchema.AttrType.INT),
    ("head_dim", OpSchema.AttrType.INT),
    ("rotary_dim", OpSchema.AttrType.INT),
    ("eps", OpSchema.AttrType.FLOAT),
    ("scale", OpSchema.AttrType.FLOAT),
    ("q_total", OpSchema.AttrType.INT),
    ("k_total", OpSchema.AttrType.INT),
]
INPUTS = [
    ("q", "T"),
    ("k", "T"),
    ("v", "T"),
    ("s", F32),
    ("q_weight", "T"),
    ("k_weight", "T"),
    ("cos", F32),
    ("sin", F32),
    ("past_len", I32),
    ("new_len", I32),
]
OUTPUTS = [("out", "T"), ("k_cache_out", "C"), ("v_cache_out", "C")]
TORCH_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor s, Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin, "
    "Tensor past_len, Tensor new_len"
)
TORCH_ATTRIBUTES = (
    "int heads, int kv_heads, int head_dim, int rotary_dim, float eps, float scale, int q_total, int k_total"
)


class AttentionWidths(NamedTuple):
    """The attributes of both ops, in their order."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    eps: float
    scale: float
    q_total: int
    k_total: int


def normalise(b: Body, x: str, column: int, total: str, weight: str) -> str:
    """x · rsqrt(s[..., column] / total + eps) in f32, rounded to the type of x, times weight over the whole
    width.
    """
    square_sum = b.Slice("s", b.ints(column), b.ints(column + 1), b.ints(2))
    mean = b.Div(square_sum, b.Cast(b.attribute(total), to=FLOAT))
    inverse = b.Reciprocal(b.Sqrt(b.Add(mean, b.attribute("eps"))))
    scaled = b.CastLike(b.Mul(b.Cast(x, to=FLOAT), inverse), x)
    return str(b.Mul(b.CastLike(weight, x), scaled))


def query_positions(b: Body) -> str:
    """past_len[b] + i as i64[B, S]."""
    steps = b.Range(b.scalar(0), b.size("q", 1), b.scalar(1))
    return str(b.Add(b.Unsqueeze(b.Cast("past_len", to=INT64), b.ints(1)), steps))


def split_heads(b: Body, x: str, heads: str) -> str:
    """[B, S, heads·D] → [B, heads, S, D]."""
    shape = b.join(b.ints(0, 0), b.attribute(heads), b.attribute("head_dim"))
    return str(b.Transpose(b.Reshape(x, shape), perm=[0, 2, 1, 3]))


def rotate(b: Body, x: str, heads: str, positions: str) -> str:
    """Partial NeoX RoPE of x[B, heads, S, D]; positions past the table's end (padding) take its last row."""
    last = b.Sub(b.size("cos", 0), b.scalar(1))
    clipped = b.Min(positions, last)
    cos, sin = b.CastLike("cos", x), b.CastLike("sin", x)
    # num_heads says nothing new of a 4-D x, but ONNX Runtime before 1.24 asks for it beside rotary_embedding_dim
    turn = {"rotary_embedding_dim": b.ref("rotary_dim"), "num_heads": b.ref(heads)}
    return str(b.RotaryEmbedding(x, cos, sin, clipped, **turn))


def query_and_key(b: Body, positions: str) -> tuple[str, str]:
    """Normed, rotated q[B, heads, S, D] and k[B, kv_heads, S, D] of the op's inputs."""
    q = split_heads(b, normalise(b, "q", 0, "q_total", "q_weight"), "heads")
    k = split_heads(b, normalise(b, "k", 1, "k_total", "k_weight"), "kv_heads")
    return rotate(b, q, "heads", positions), rotate(b, k, "kv_heads", positions)


def value_rows(b: Body) -> str:
    """The op's v as [B, S, kv_heads, D]."""
    return str(b.Reshape("v", b.join(b.ints(0, 0), b.attribute("kv_heads"), b.attribute("head_dim"))))


def attend(b: Body, q: str, keys: str, values: str, positions: str) -> str:
    """q[B, Hq, S, D] over keys and values [B, Hkv, L, D] with mask kv_pos <= position → [B, S, Hq·D]."""
    slots = b.Range(b.scalar(0), b.size(keys, 2), b.scalar(1))
    seen = b.LessOrEqual(slots, b.Unsqueeze(positions, b.ints(2)))
    out = b.Attention(
        q, b.CastLike(keys, q), b.CastLike(values, q), b.Unsqueeze(seen, b.ints(1)), scale=b.ref("scale")
    )
    return str(b.Reshape(b.Transpose(out, perm=[0, 2, 1, 3]), b.ints(0, 0, -1)))


def normalise_reference(x: Tensor, square_sum: Tensor, total: int, eps: float, weight: Tensor) -> Tensor:
    """x[B, S, N], square_sum f32[B, S] → [B, S, N]."""
    import torch

    inverse = torch.rsqrt(square_sum[..., None] / total + eps)
    return weight.to(x.dtype) * (x.float() * inverse).to(x.dtype)


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """x[B, S, heads, D], cos and sin [P, r/2], positions i64[B, S]."""
    import torch

    at = positions.clamp(max=cos.shape[0] - 1)
    c, s = cos[at].to(x.dtype)[:, :, None], sin[at].to(x.dtype)[:, :, None]
    half = cos.shape[1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * c - second * s, second * c + first * s, rest], -1)


def rows_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    past_len: Tensor,
    widths: AttentionWidths,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q[B, S, heads, D] and k[B, S, kv_heads, D] normed and rotated, v alike, positions i64[B, S]."""
    import torch

    batch, steps = q.shape[:2]
    positions = past_len[:, None].long() + torch.arange(steps, device=q.device)
    q = normalise_reference(q, s[..., 0], widths.q_total, widths.eps, q_weight)
    k = normalise_reference(k, s[..., 1], widths.k_total, widths.eps, k_weight)
    q = rotate_reference(q.view(batch, steps, widths.heads, widths.head_dim), cos, sin, positions)
    k = rotate_reference(k.view(batch, steps, widths.kv_heads, widths.head_dim), cos, sin, positions)
    return q, k, v.view(batch, steps, widths.kv_heads, widths.head_dim), positions


def attend_reference(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
    """q[B, S, Hq, D], keys and values [B, Hkv, L, D], positions [B, S] → [B, S, Hq·D]."""
    import torch

    seen = torch.arange(keys.shape[2], device=q.device) <= positions[:, None, :, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        keys.to(q.dtype),
        values.to(q.dtype),
        attn_mask=seen,
        scale=scale,
        enable_gqa=True,
    )
    return out.transpose(1, 2).flatten(2)
