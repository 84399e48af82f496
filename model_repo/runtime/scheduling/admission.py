"""From a prepared request to what the scheduler is given."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from mm2c_runtime.generation import Generation
from mm2c_runtime.scheduling.allowed import AllowedTokens
from mm2c_runtime.scheduling.constrained import ConstrainedTokens, Mask
from mm2c_runtime.scheduling.sequence import Sequence, TokenFilter


def new_sequence(
    request_id: str,
    generation: Generation,
    vocab: int,
    start: Callable[[Callable[[], Mask]], Future[Mask]],
    *,
    now: float,
) -> Sequence:
    """Its deadline is on the clock of ``now``; ``start`` is where masks of its grammar are computed."""
    return Sequence(
        id=request_id,
        prompt=generation.prompt,
        max_tokens=generation.max_tokens,
        sampling=generation.sampling,
        min_tokens=generation.min_tokens,
        stop_tokens=generation.stop_tokens,
        allowed=_filter(generation, vocab, start),
        logprobs=generation.logprobs,
        priority=generation.priority,
        deadline=None if generation.timeout is None else now + generation.timeout,
    )


def _filter(
    generation: Generation, vocab: int, start: Callable[[Callable[[], Mask]], Future[Mask]]
) -> TokenFilter | None:
    allowed, matcher = None, generation.matcher
    if generation.min_tokens or generation.bad_words:
        allowed = AllowedTokens(
            vocab,
            min_tokens=generation.min_tokens,
            stop_tokens=generation.stop_tokens | (matcher.ends if matcher is not None else frozenset()),
            bad_words=generation.bad_words,
        )
    if matcher is None:
        return allowed
    return ConstrainedTokens(matcher, start, stop_tokens=generation.stop_tokens, allowed=allowed)
