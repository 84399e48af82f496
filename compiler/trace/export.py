"""From the rebound module to ONNX: a thin top loop over the official layers, torch.export, the ONNX
exporter.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from mm2c import dialect
from mm2c.config import ModelConfig
from mm2c.trace import standard


@dataclass
class StepCache:
    """What the official layers carry as ``past_key_values``: the step's lengths, caches in and caches out."""

    past_len: Tensor
    new_len: Tensor
    k: list[Tensor]
    v: list[Tensor]
    k_out: list[Any] = field(default_factory=list)
    v_out: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.k_out = [None] * len(self.k)
        self.v_out = [None] * len(self.v)


def input_names(layers: int) -> list[str]:
    return ["input_ids", "past_len", "new_len", *(f"{x}_cache.{i}" for i in range(layers) for x in "kv")]


def output_names(layers: int) -> list[str]:
    return ["logits", *(f"{x}_cache_out.{i}" for i in range(layers) for x in "kv")]


class Step(torch.nn.Module):  # type: ignore[misc]
    """One step of the model: (input_ids, past_len, new_len, caches k0, v0, k1 …) → (logits, caches).

    ``model`` is the rebound official module; hidden states are ``activation``; the rope tables have
    ``context`` rows.
    """

    def __init__(
        self, model: Any, config: ModelConfig, context: int, all_logits: bool, activation: torch.dtype
    ) -> None:
        super().__init__()
        self.model = model.model
        self.lm_head = model.lm_head
        self.rope = torch.nn.Module()
        for table in ("cos", "sin"):
            empty = torch.empty(context, config.rope.rotary_dim // 2, dtype=torch.float32, device="meta")
            self.rope.register_buffer(table, empty)
        self.all_logits = all_logits
        self.activation = activation

    def forward(
        self, input_ids: Tensor, past_len: Tensor, new_len: Tensor, caches: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        cache = StepCache(past_len, new_len, caches[0::2], caches[1::2])
        hidden = self.model.embed_tokens(input_ids).to(self.activation)
        for layer in self.model.layers:
            hidden = layer(
                hidden,
                position_embeddings=(self.rope.cos, self.rope.sin),
                attention_mask=None,
                past_key_values=cache,
            )
        if not self.all_logits:
            hidden = torch.ops.mm2c.last_token(hidden, new_len)
        logits = self.lm_head(self.model.norm(hidden))
        return logits, [x for pair in zip(cache.k_out, cache.v_out, strict=True) for x in pair]


def export_onnx(step: Step, config: ModelConfig) -> ir.Model:
    """The step module as an ONNX model of standard and dialect ops, its initializers still on meta."""
    translations = {op.op: op.translate for op in dialect.register_torch().values()}
    translations |= standard.register_torch()
    batch, seq, kv_len = (torch.export.Dim(name, min=1) for name in ("batch", "seq", "kv_len"))
    count = 2 * config.layers
    # sizes that nothing in the model has, so that none is taken for another
    cache = (2, config.kv_heads, 7, config.head_dim)
    lengths = [torch.zeros(2, dtype=torch.int32, device="meta") for _ in range(2)]
    arguments = (
        torch.zeros(2, 3, dtype=torch.int64, device="meta"),
        *lengths,
        [torch.zeros(cache, dtype=step.activation, device="meta") for _ in range(count)],
    )
    shapes = ({0: batch, 1: seq}, {0: batch}, {0: batch}, [{0: batch, 2: kv_len}] * count)
    with torch.no_grad(), _quiet():
        program = torch.export.export(step, arguments, dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            custom_translation_table=translations,
            optimize=False,
            opset_version=dialect.OPSET,
            input_names=input_names(config.layers),
            output_names=output_names(config.layers),
            verbose=False,
        )
    model: ir.Model = exported.model
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress and deprecation notes say nothing to a user of the compiler."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
