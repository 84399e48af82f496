"""What bounds a decode step from below: the bytes that a GPU reads, and the messages that it waits for.

A step reads every weight that its tokens use once, and the cache of its rows. Which experts they use is the model's
choice; with routing that favours none, T tokens of k choices leave an expert of E untouched with probability
(1 - k/E)^T. Where whole experts are spread over GPUs the step waits for the one with the most of them.

TensorRT-RTX has no plugins: it reads the experts of each token for itself, or all, and writes and reads them again in
bf16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mm2c.config import Mapping, ModelConfig
from mm2c.memory import Weights
from mm2c.plan.fit import Fit
from mm2c.plan.scratch import GATHERED_TOKENS
from mm2c.plan.step import BF16

TOKENS_A_ROW = 8192  # of cache that a row is taken to hold, or the context if that is shorter


@dataclass(frozen=True)
class DecodeStep:
    """Of one GPU and one step: ``read`` bytes of weights and cache; ``messages`` exchanged and ``sent`` bytes of
    them; the time that both take at least, in seconds."""

    rows: int
    tokens_a_row: int
    read: int
    messages: int
    sent: int
    memory_seconds: float
    message_seconds: float

    @property
    def seconds(self) -> float:
        return self.memory_seconds + self.message_seconds


def decode_step(fit: Fit) -> DecodeStep:
    """Of all rows that were asked for, one token each."""
    from mm2c.collectives import cheaper_head, plan_collectives

    config, mapping, rows = fit.ask.config, fit.mapping, fit.rows
    length = min(TOKENS_A_ROW, fit.ask.context)
    rank = fit.memory.ranks[0]
    weights = _weights_read(config, mapping, rank.weights, rows, copied=fit.ask.engine == "tensorrt-rtx")
    read = weights + rows * length * rank.kv_per_token
    head = cheaper_head(config, mapping)
    messages = plan_collectives(config, mapping, tokens=rows, rows=rows, itemsize=BF16, head=head)
    sent = sum(message.sent for message in messages)
    return DecodeStep(
        rows,
        length,
        read,
        len(messages),
        sent,
        memory_seconds=read / fit.gpu.bandwidth,
        message_seconds=len(messages) * fit.gpu.message_seconds + sent / fit.gpu.link,
    )


def _weights_read(config: ModelConfig, mapping: Mapping, weights: Weights, rows: int, *, copied: bool) -> int:
    own = config.experts // mapping.ep
    used = experts_used(config, rows * mapping.attention_dp, mapping.ep)
    experts = weights.experts * used / own
    if copied:
        gathered = rows <= GATHERED_TOKENS
        in_bf16 = 3 * own * config.intermediate // mapping.moe_tp * config.hidden * BF16 * config.layers
        share = rows * config.top_k / own if gathered else 1.0
        experts = share * (weights.experts + 2 * in_bf16)
    return weights.attention + weights.router + weights.norms + weights.head + int(experts)


def experts_used(config: ModelConfig, tokens: int, ep: int) -> float:
    """Experts that ``tokens`` tokens use on the fullest of ``ep`` GPUs or groups, on average."""
    own = config.experts // ep
    chance = 1 - (1 - config.top_k / config.experts) ** tokens
    mean = own * chance
    spread = math.sqrt(2 * math.log(ep) * own * chance * (1 - chance))  # expected largest of ep normal draws
    return min(mean + spread, own, tokens * config.top_k)
