"""The guide's figures beside ours, and every step of arithmetic between the two."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mm2c.config import Mapping
from mm2c.memory import Weights
from mm2c.plan import guide
from mm2c.plan.ask import Ask
from mm2c.plan.fit import Fit, fit, memory_of
from mm2c.plan.gpus import find_gpu
from mm2c.plan.layouts import fault_of
from mm2c.plan.sizes import gb, gib, tokens


@dataclass(frozen=True)
class Term:
    """One step from the guide's way of counting to ours, in tokens: the first is a count, the others are added."""

    what: str
    tokens: float


@dataclass(frozen=True)
class Comparison:
    """One layout of a row on one kind of GPU. ``terms`` add up to ``ours``. ``needed``: bytes that the guide's
    tokens and one copy of the weights take; ``fp8``: our tokens with an FP8 cache."""

    row: guide.Row
    ours: Fit
    terms: tuple[Term, ...]
    needed: int
    fp8: int
    refused: bool = False

    @property
    def ratio(self) -> float:
        """Ours to the guide's, 0 where it gives none."""
        return self.ours.kv_capacity_tokens / self.row.tokens if self.row.tokens else 0.0

    @property
    def counted(self) -> float:
        """Tokens that the guide's own way of counting gives, before a step takes anything."""
        return self.terms[0].tokens

    @property
    def remark(self) -> str:
        """What the guide's figure would take of the GPUs."""
        if self.refused:
            return "the guide says that this layout is not supported; our scales are re-blocked where it cuts them"
        if not self.row.tokens:
            return f"the guide gives no figure, and takes {self.row.share:.0%} of each GPU"
        named, real = self.row.gpus * self.row.size * 10**9, self.row.gpus * self.ours.gpu.memory
        text = (
            f"{tokens(self.row.tokens)} tokens and one copy of the weights are {gb(self.needed)}: "
            f"{self.needed / named:.0%} of {gb(named)}, {self.needed / real:.0%} of the {gb(real)} that are there"
        )
        if self.needed > real:
            text += "; more than all memory: only an FP8 cache holds so many"
        elif self.needed > self.row.share * real:
            text += f"; more than the {self.row.share:.0%} that vLLM takes by default"
        elif self.counted > self.row.tokens:
            left = (self.counted - self.row.tokens) * self.ours.memory.kv_per_token / self.row.gpus
            text += f"; that leaves {gb(left)} of each GPU's {self.row.share:.0%} to steps and context"
        return text


@dataclass(frozen=True)
class Base:
    """What all rows share: one copy of the weights by part, and the cache of a token with every KV head once."""

    weights: Weights
    kv_per_token: int


def base_of(ask: Ask) -> Base:
    whole = memory_of(ask, Mapping()).ranks[0]
    return Base(whole.weights, whole.kv_per_token)


def compare(ask: Ask) -> tuple[Comparison, ...]:
    """Every row of the guide, every layout that it launches and every GPU that it can mean; layouts that this model
    does not allow are left out."""
    base = base_of(ask)
    found = []
    for row in guide.ROWS:
        for mapping in (*row.layouts, *row.refused):
            if fault_of(ask.config, mapping) is None:
                found += [_compared(ask, base, row, mapping, card) for card in row.cards]
    return tuple(found)


def _compared(ask: Ask, base: Base, row: guide.Row, mapping: Mapping, card: str) -> Comparison:
    gpu = find_gpu(card)
    own = fit(ask, gpu, mapping)
    small = fit(replace(ask, kv_dtype="fp8"), gpu, mapping)
    needed = base.weights.total + row.tokens * base.kv_per_token
    terms = _terms(own, base, row)
    return Comparison(row, own, terms, needed, small.kv_capacity_tokens, mapping in row.refused)


def _terms(own: Fit, base: Base, row: guide.Row) -> tuple[Term, ...]:
    """From "GPUs × GB × share, less the weights, by the cache of a token" to what our rule leaves."""
    count, one, per_token = row.gpus, own.tightest, base.kv_per_token
    named, real = row.size * 10**9, own.gpu.memory
    copies = own.memory.replicas * sum(rank.weights.total for rank in own.memory.ranks)
    start = (count * named * row.share - base.weights.total) / per_token
    system = one.system + one.collectives
    steps = one.reserve + one.rank.step + one.rank.buffers
    terms = [
        Term(
            f"{count} × {row.size} GB × {row.share:.0%} − {gb(base.weights.total)}, by {per_token:,} bytes a token",
            start,
        ),
        Term(
            f"{own.gpu.title}: {real >> 20:,} MiB = {gb(real)} each, as the driver reports",
            count * (real - named) * row.share / per_token,
        ),
        Term(
            f"the other {1 - row.share:.0%} of them is not left aside",
            count * real * (1 - row.share) / per_token,
        ),
        Term(f"driver, context and NCCL: {gib(system)} a GPU", -count * system / per_token),
        Term(f"steps, CUDA graphs and a margin: {gib(steps)} a GPU", -count * steps / per_token),
        Term(
            f"weights that several GPUs hold: {gb(copies - base.weights.total)} more",
            -(copies - base.weights.total) / per_token,
        ),
    ]
    rest = own.kv_capacity_tokens - sum(term.tokens for term in terms)
    copied = own.mapping.tp * one.rank.kv_per_token / base.kv_per_token
    heads = f"each KV head is held {copied:.0f} times; " if copied > 1 else ""
    return (*terms, Term(f"{heads}whole pages on the fullest GPU", rest))
