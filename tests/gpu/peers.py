"""transformers' own decoder layer at the same rank's sizes, in torch eager and under torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from report import Skip
from sizes import DEVICE, M2, Slice

LEAST = (5, 17)  # transformers


class FilledCache:
    """A cache that holds ``context - 1`` tokens already: each call's token is written to the last place, so
    that runs repeat. The cheapest cache that there is; transformers' own cost more."""

    def __init__(self, batch: int, context: int, size: Slice, device: str) -> None:
        shape = (batch, size.kv_heads, context, size.head_dim)
        self._k, self._v = (torch.randn(shape, device=device).to(torch.bfloat16) for _ in range(2))

    def update(
        self, k: torch.Tensor, v: torch.Tensor, layer: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        steps = k.shape[2]
        self._k[:, :, -steps:], self._v[:, :, -steps:] = k, v
        return self._k, self._v


def decoder_layer(size: Slice = M2, device: str = DEVICE, experts: str = "eager") -> torch.nn.Module:
    """MiniMaxM2DecoderLayer in bf16 with random weights; ``experts`` names transformers' way of running them
    (eager, batched_mm, grouped_mm). Raises Skip where transformers is missing or too old."""
    try:
        import transformers
        from transformers.models.minimax_m2 import modeling_minimax_m2 as module
    except ImportError as error:
        raise Skip(f"transformers with MiniMax-M2 is not here: {error}") from None
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < LEAST:
        raise Skip(f"transformers {transformers.__version__} is older than {LEAST[0]}.{LEAST[1]}")
    config = module.MiniMaxM2Config(
        hidden_size=size.hidden, intermediate_size=size.intermediate, num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads, head_dim=size.head_dim, rotary_dim=size.rotary_dim,
        num_local_experts=size.experts, num_experts_per_tok=size.top_k, num_hidden_layers=1,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    config._experts_implementation = experts
    with _building(device):
        layer = module.MiniMaxM2DecoderLayer(config, 0).eval()
    for parameter in [*layer.parameters(), *layer.buffers()]:
        if parameter.is_floating_point():
            torch.nn.init.normal_(parameter, std=0.02)
    return layer  # type: ignore[no-any-return]


@contextmanager
def _building(device: str) -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def decode(layer: torch.nn.Module, batch: int, context: int, size: Slice = M2, device: str = DEVICE,
           compiled: bool = False) -> Callable[[], torch.Tensor]:  # fmt: skip
    """A decode step of the layer on ``batch`` rows that hold ``context - 1`` tokens each."""
    cache = FilledCache(batch, context, size, device)
    hidden = torch.randn(batch, 1, size.hidden, device=device).to(torch.bfloat16)
    position = torch.full((batch, 1), context - 1, device=device)
    angles = torch.rand(batch, 1, size.rotary_dim, device=device)
    embeddings = (angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16))
    run: Callable[..., torch.Tensor] = torch.compile(layer) if compiled else layer

    @torch.inference_mode()
    def step() -> torch.Tensor:
        return run(hidden, position_embeddings=embeddings, position_ids=position, past_key_values=cache)

    return step
