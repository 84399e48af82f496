"""M2Attention: QK norm, partial RoPE, cache write and GQA over a cache of rows."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from onnx import FunctionProto
from onnx.defs import OpSchema

from mm2c.dialect import attention_maths as maths
from mm2c.dialect.body import INT64, Body
from mm2c.dialect.schema import F32, I32, define
from mm2c.dialect.spec import OpSpec, TorchOp
from mm2c.dialect.torch_op import register

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = None  # engines with a rows cache have native layers for it

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
ACTIVATION_INPUTS = [
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

SCHEMA = define(
    "M2Attention",
    "q[B, S, heads·head_dim], k and v[B, S, kv_heads·head_dim] as projected; s[B, S, 2] the sums of squares of q and "
    "of k over the q_total and k_total elements of the whole model. Query i of row b stands at past_len[b] + i. "
    "Rows 0 … new_len[b] - 1 of k (normed, rotated) and of v are written to k_cache and v_cache"
    "[B, kv_heads, L, head_dim] at their positions; i >= new_len[b] is padding: it writes nothing and its output is "
    "finite but unspecified. Attention is over cache positions <= past_len[b] + i.",
    inputs=[*ACTIVATION_INPUTS, ("k_cache", "C"), ("v_cache", "C")],
    outputs=[("out", "T"), ("k_cache_out", "C"), ("v_cache_out", "C")],
    attributes=ATTRIBUTES,
)


def body() -> FunctionProto:
    b = Body(SCHEMA)
    positions = maths.query_positions(b)
    q = maths.split_heads(b, maths.normalise(b, "q", 0, "q_total", "q_weight"), "heads")
    k = maths.split_heads(b, maths.normalise(b, "k", 1, "k_total", "k_weight"), "kv_heads")
    q, k = maths.rotate(b, q, positions), maths.rotate(b, k, positions)

    # a cache slot takes new row slot - past_len if that is a real one, else keeps what it holds
    slots = b.Range(b.int(0), b.size("k_cache", 2), b.int(1))
    source = b.Sub(slots, b.Unsqueeze(b.Cast("past_len", to=INT64), b.ints(1)))  # [B, L]
    new = b.Unsqueeze(b.Cast("new_len", to=INT64), b.ints(1))
    written = b.Unsqueeze(
        b.And(b.GreaterOrEqual(source, b.int(0)), b.Less(source, new)), b.ints(1, 3)
    )  # [B, 1, L, 1]
    row = b.Max(b.Min(source, b.Sub(b.size("q", 1), b.int(1))), b.int(0))
    row = b.Unsqueeze(row, b.ints(2))  # [B, L, 1]

    def write(rows: str, cache: str) -> str:  # rows [B, S, kv_heads, D]
        placed = b.Transpose(b.GatherND(rows, row, batch_dims=1), perm=[0, 2, 1, 3])
        return str(b.Where(written, b.CastLike(placed, cache), cache))

    keys = write(b.Transpose(k, perm=[0, 2, 1, 3]), "k_cache")
    v_shape = b.join(b.ints(0, 0), b.attribute("kv_heads"), b.attribute("head_dim"))
    values = write(b.Reshape("v", v_shape), "v_cache")
    return b.function(maths.attend(b, q, keys, values, positions), keys, values)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    past_len: Tensor,
    new_len: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    eps: float,
    scale: float,
    q_total: int,
    k_total: int,
) -> tuple[Tensor, Tensor, Tensor]:
    import torch

    batch, steps = q.shape[:2]
    positions = past_len[:, None].long() + torch.arange(steps, device=q.device)
    q = maths.normalise_reference(q, s[..., 0], q_total, eps, q_weight).view(batch, steps, heads, head_dim)
    k = maths.normalise_reference(k, s[..., 1], k_total, eps, k_weight).view(batch, steps, kv_heads, head_dim)
    q = maths.rotate_reference(q, cos, sin, positions)
    k = maths.rotate_reference(k, cos, sin, positions)
    v = v.view(batch, steps, kv_heads, head_dim)
    keys, values = k_cache.clone(), v_cache.clone()
    for row, (past, new) in enumerate(zip(past_len.tolist(), new_len.tolist(), strict=True)):
        keys[row, :, past : past + new] = k[row, :new].transpose(0, 1).to(keys.dtype)
        values[row, :, past : past + new] = v[row, :new].transpose(0, 1).to(values.dtype)
    return maths.attend_reference(q, keys, values, positions, scale), keys, values


def fake(q: Tensor, *args: object) -> tuple[Tensor, Tensor, Tensor]:
    k_cache, v_cache = args[9], args[10]
    return q.new_empty(q.shape), _like(k_cache), _like(v_cache)


def _like(cache: object) -> Tensor:
    import torch

    return torch.empty_like(cache, memory_format=torch.contiguous_format)


@lru_cache(maxsize=None)
def register_torch() -> TorchOp:
    signature = (
        "(Tensor q, Tensor k, Tensor v, Tensor s, Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin, "
        "Tensor past_len, Tensor new_len, Tensor k_cache, Tensor v_cache, int heads, int kv_heads, int head_dim, "
        "int rotary_dim, float eps, float scale, int q_total, int k_total) -> (Tensor, Tensor, Tensor)"
    )
    return register(SCHEMA, "attention", signature, reference, fake)


SPEC = OpSpec(SCHEMA, body, PLUGIN, register_torch)
