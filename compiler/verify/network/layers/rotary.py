"""ROTARY_EMBEDDING: the first axes of every head turned by an angle of its position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import FLOATS, Precision, widened
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.given import tensor, within
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView


@evaluates("ROTARY_EMBEDDING", "IRotaryEmbeddingLayer", "interleaved", "rotary_embedding_dim")
def rotary_embedding(view: LayerView) -> Evaluate:
    """x[B, heads, S, D]; cos and sin [P, r/2] with positions[B, S] as input 3, or [B, S, r/2] without. The pairs that
    are turned are (i, i + r/2), or (2i, 2i + 1) where interleaved. ``rotary_embedding_dim`` 0 is all of D."""
    view.only(0, 1, 2, 3)
    x_facts, cos_facts, sin_facts = (view.input(index) for index in range(3))
    interleaved, indexed = bool(view.layer.interleaved), view.given(3)
    if {f.dtype for f in (x_facts, cos_facts, sin_facts)} - {x_facts.dtype} or x_facts.dtype not in FLOATS:
        view.refuse(f"types {x_facts.dtype}, {cos_facts.dtype} and {sin_facts.dtype}")
    if len(x_facts.shape) != 4 or len(cos_facts.shape) != (2 if indexed else 3):
        view.refuse(f"x {list(x_facts.shape)}, cos {list(cos_facts.shape)}")
    width = int(view.layer.rotary_embedding_dim) or x_facts.shape[3]
    if width % 2 or not 0 < width <= x_facts.shape[3]:
        view.refuse(f"rotary_embedding_dim {width} of {x_facts.shape[3]}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        x, cos, sin = (tensor(given, index) for index in range(3))
        if indexed:
            at = tensor(given, 3).long()
            within(at, 0, len(cos), f"layer {view.name}")
            cos, sin = cos[at], sin[at]
        if cos.shape != sin.shape or tuple(cos.shape) != (x.shape[0], x.shape[2], width // 2):
            raise ReplayError(f"layer {view.name}: cos {list(cos.shape)} of x {list(x.shape)}")
        return (_turned(x, cos, sin, width, interleaved),)

    return evaluate


def _turned(x: Tensor, cos: Tensor, sin: Tensor, width: int, interleaved: bool) -> Tensor:
    """In f32, rounded once."""
    c, s = widened(cos)[:, None], widened(sin)[:, None]
    part, rest = widened(x[..., :width]), x[..., width:]
    if interleaved:
        first, second = part[..., ::2], part[..., 1::2]
        turned = torch.stack([first * c - second * s, second * c + first * s], -1).flatten(-2)
    else:
        first, second = part.chunk(2, -1)
        turned = torch.cat([first * c - second * s, second * c + first * s], -1)
    return torch.cat([turned.to(x.dtype), rest], -1)
