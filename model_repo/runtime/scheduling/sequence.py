"""One request as the scheduler sees it: token ids, limits, and where its cache is."""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList
from dataclasses import dataclass, field
from typing import Protocol

from mm2c_runtime.step import Bitmask, SamplingParams


class TokenFilter(Protocol):
    """What may be sampled: ``scheduling.allowed``, ``scheduling.constrained``."""

    def bitmask(self, generated: ReadOnlyList[int]) -> Bitmask | None:
        """The step protocol's mask of the token after ``generated``; None where everything is allowed."""

    def take(self, token: int) -> bool:
        """The token was sampled; whether the answer is complete with it. Raises RequestError where it cannot be
        gone on with."""


@dataclass(slots=True, eq=False)
class Sequence:
    """``past_len``: positions of ``prompt + generated`` already in the cache row. ``row`` is -1 while
    waiting.

    ``deadline`` is on the clock that the scheduler is asked with. ``stop_tokens`` end the request once
    ``min_tokens`` have been generated; ``allowed`` restricts what may be sampled.
    """

    id: str
    prompt: ReadOnlyList[int]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    min_tokens: int = 0
    stop_tokens: frozenset[int] = frozenset()
    allowed: TokenFilter | None = None
    logprobs: int | None = None
    priority: int = 0
    deadline: float | None = None
    arrival: int = 0
    row: int = -1
    past_len: int = 0
    generated: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """How many it may come to, prompt and answer."""
        return len(self.prompt) + self.max_tokens

    @property
    def penalised(self) -> bool:
        """Whether the sampler needs the history of this sequence."""
        sampling = self.sampling
        return bool(
            sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        )
