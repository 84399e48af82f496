"""Sampling bound by a grammar: which tokens may come next, found out while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import RequestError
from mm2c_runtime.scheduling.allowed import AllowedTokens

Mask = NDArray[np.int32]  # int32[ceil(V/32)], bit set = allowed


class Matcher(Protocol):
    """Where an answer stands in its grammar (``mm2c_runtime.grammar.matcher.GrammarMatcher``)."""

    @property
    def ends(self) -> frozenset[int]: ...
    def bitmask(self) -> Mask: ...
    def advance(self, token: int) -> None: ...
    @property
    def is_accepting(self) -> bool: ...
    @property
    def is_stopped(self) -> bool: ...


class ConstrainedTokens:
    """What the grammar allows, less what ``allowed`` forbids.

    ``start`` runs a function on another thread and returns its future: a mask is asked for as a step is
    planned and needed when its logits are there. ``stop_tokens`` end the answer wherever the grammar lets it
    end, in place of the grammar's own end tokens where these are not among them. What forbids an end, ``min_tokens``
    of ``allowed`` too, yields where only the end is left; its bad words do not.
    """

    def __init__(
        self,
        matcher: Matcher,
        start: Callable[[Callable[[], Mask]], Future[Mask]],
        *,
        stop_tokens: frozenset[int] = frozenset(),
        allowed: AllowedTokens | None = None,
    ) -> None:
        self._matcher, self._start, self._allowed = matcher, start, allowed
        self._other_ends = stop_tokens - matcher.ends
        self._not_ends = matcher.ends - stop_tokens

    def bitmask(self, generated: Sequence[int]) -> Future[Mask]:
        """The mask of the next token. Its future fails with RequestError where nothing may follow at all, or
        the grammar is too complex to follow."""
        return self._start(lambda: self._bitmask(generated))

    def take(self, token: int) -> bool:
        """Takes the token that was sampled; whether the answer is complete. Raises RequestError."""
        if token in self._other_ends and self._matcher.is_accepting:
            return True
        self._matcher.advance(token)
        return self._matcher.is_stopped

    def _bitmask(self, generated: Sequence[int]) -> Mask:
        grammar = self._matcher.bitmask()
        if self._other_ends and self._matcher.is_accepting:
            for token in self._other_ends:
                grammar.view(np.uint32)[token // 32] |= np.uint32(1 << (token % 32))
        if self._not_ends:
            grammar = _without(grammar, self._not_ends)
        if self._allowed is None:
            return grammar
        for others in (self._allowed.bitmask(generated), self._allowed.bad_words(generated)):
            mask = grammar if others is None else grammar & others
            if mask.any():
                return mask
        raise RequestError(
            "INVALID_ARGUMENT", "bad_words forbids every token that the grammar of the answer allows here"
        )


def _without(mask: Mask, tokens: frozenset[int]) -> Mask:
    """``mask`` less ``tokens``, unless that leaves nothing."""
    less = mask.copy()
    for token in tokens:
        less.view(np.uint32)[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << (token % 32)))
    return less if less.any() else mask
