"""The step protocol: what the engine asks of every rank, and what comes back (plain values, picklable but
for masks that are not there yet)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol, Union

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import Code

# int32[ceil(V/32)], bit set = allowed; or the promise of one, which is computed while the model runs. Whoever
# samples waits for it, and sends it after the step where that is in another process.
Bitmask = Union[NDArray[np.int32], "Future[NDArray[np.int32]]"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off;
    penalties as in transformers (repetition) and OpenAI (presence, frequency)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0  # 64 bits; the engine draws one where the request gives none


@dataclass(slots=True)
class RowStep:
    """One row of a step. ``row`` is the cache row; ``tokens`` has ``new_len`` ids.

    ``sampling`` comes with the row's first step only. ``token_index`` counts generated tokens and is the
    Philox counter. ``history`` holds ids for the penalties: everything so far on the first step, then deltas.
    ``bitmask`` says what may be sampled. ``logprobs``: how many alternatives, or None. ``blocks``: pages that
    the row is given, in order of positions: on its first step all of them, where the cache has pages.
    """

    row: int
    tokens: list[int]
    past_len: int
    new_len: int
    sample: bool
    token_index: int = 0
    sampling: SamplingParams | None = None
    history: list[int] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)  # of ``history``, those that the model generated
    bitmask: Bitmask | None = None
    logprobs: int | None = None
    blocks: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RowCopy:
    """Copy the first ``length`` positions of cache row ``source`` (and its sampler state) to row ``target``."""

    source: int
    target: int
    length: int


@dataclass(slots=True)
class StepBatch:
    """``prefill``: one row, several tokens. ``decode``: rows 0..n-1 in order, one token each.
    ``copies`` are carried out first, ``released`` rows' sampler state is dropped before them."""

    step_id: int
    kind: Literal["prefill", "decode"]
    rows: list[RowStep]
    copies: list[RowCopy] = field(default_factory=list)
    released: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities of the model's own distribution (before temperature and filters)."""

    chosen: float
    top: list[tuple[int, float]]


@dataclass(slots=True)
class RowResult:
    row: int
    token: int | None = None  # None where the row asked for no sample
    logprobs: TokenLogprobs | None = None
    error: str | None = None  # this row only; the others go on
    code: Code = "INTERNAL"  # of the error


@dataclass(slots=True)
class StepResult:
    """``failure``: why this attention group's part of a joint step failed as a whole, while the others' went on; it has
    no rows then."""

    step_id: int
    rows: list[RowResult]
    failure: str = ""


class StepExecutor(Protocol):
    """Runs steps (``mm2c_runtime.executors.base``). ConnectionError or EOFError means that a rank is gone; any other
    exception is the fault of that step alone. ``steps``, where there are several attention groups: one batch for
    each, None where it has nothing to do."""

    def step(self, batch: StepBatch) -> StepResult: ...
    def steps(self, batches: Sequence[StepBatch | None]) -> list[StepResult | None]: ...
    def close(self) -> None: ...
