"""Which messages the ranks of a replica exchange in a step, and how large they are. Pure: no graph is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mm2c.config import Mapping, ModelConfig
from mm2c_runtime.sampling.keys import message_bytes

Head = Literal["gather", "candidates"]
Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]
CANDIDATES = "lm_head.candidates"
_F32 = 4  # bytes; sums of squares and logits travel in f32


@dataclass(frozen=True)
class Message:
    """One collective. ``name`` is its node's; ``layer`` None: of embedding or head. ``bytes_in``: what a rank gives
    to it; ``sent``: what a rank sends to its neighbour if the ``group_size`` ranks stand in a ring."""

    name: str
    layer: int | None
    kind: Kind
    group_size: int
    bytes_in: int
    sent: int


def cheaper_head(config: ModelConfig, mapping: Mapping) -> Head:
    """How the ranks choose tokens of a vocabulary that is cut: by gathering logits, or the best tokens of each rank,
    whichever moves less. Both grow with the rows alike."""
    logits = -(-config.vocab // mapping.tp) * _F32
    return "candidates" if mapping.tp > 1 and message_bytes(1) < logits else "gather"


def plan_collectives(
    config: ModelConfig,
    mapping: Mapping,
    *,
    tokens: int,
    rows: int,
    itemsize: int,
    head: Head = "gather",
) -> list[Message]:
    """The messages of one step in the order in which they are sent; none where a replica is one rank.

    ``tokens``: of the step, of each attention group (with attention-DP the groups' common ``step_tokens``);
    ``rows``: whose next token is chosen; ``itemsize``: bytes of an activation; ``head``: "candidates" is the
    runtime's message, not the graph's, of a step whose rows are all drawn from the best tokens. The last layer's
    output projection and experts run for those rows alone, as ``hoist_last_token`` has it in the lowerings that
    serve; with attention-DP they run for all tokens.
    """
    return list(_messages(config, mapping, tokens, rows, itemsize, head))


def _messages(
    config: ModelConfig, mapping: Mapping, tokens: int, rows: int, itemsize: int, head: Head
) -> Iterator[Message]:
    tp, groups = mapping.tp, mapping.attention_dp
    hidden = tokens * config.hidden * itemsize
    if tp > 1:
        yield _message("model.embed_tokens", None, "all_reduce", tp, hidden)
    for layer in range(config.layers):
        attention, experts = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp.experts"
        if layer == config.layers - 1 and groups == 1:
            hidden = rows * config.hidden * itemsize
        if tp > 1:
            yield _message(f"{attention}.qk_sums", layer, "all_reduce", tp, tokens * 2 * _F32)
            yield _message(f"{attention}.o_proj", layer, "all_reduce", tp, hidden)
        if groups > 1:
            yield _message(f"{experts}.tokens", layer, "all_gather", groups, hidden)
            yield _message(experts, layer, "reduce_scatter", groups, groups * hidden)
        if tp > 1:
            yield _message(experts, layer, "all_reduce", tp, hidden)
    if tp > 1 and head == "candidates":
        yield _message(CANDIDATES, None, "all_gather", tp, message_bytes(rows))
    elif tp > 1:
        yield _message("lm_head", None, "all_gather", tp, rows * -(-config.vocab // tp) * _F32)


def _message(module: str, layer: int | None, kind: Kind, ranks: int, size: int) -> Message:
    """A ring passes every part on to all but its owner; an all_reduce is a reduce_scatter and an all_gather."""
    sent = {
        "all_gather": (ranks - 1) * size,
        "reduce_scatter": (ranks - 1) * size // ranks,
        "all_reduce": 2 * (ranks - 1) * size // ranks,
    }[kind]
    return Message(f"{module}.{kind}", layer, kind, ranks, size, sent)
