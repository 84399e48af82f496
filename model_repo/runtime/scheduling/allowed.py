"""Which tokens a request may sample next, as the step protocol's bitmask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class AllowedTokens:
    """Forbids the stop tokens until ``min_tokens`` are generated, and the last token of every bad word whose
    other tokens have just been generated. A token costs a look-up for each length of bad word, however many
    words there are."""

    def __init__(
        self,
        vocab: int,
        *,
        min_tokens: int = 0,
        stop_tokens: Iterable[int] = (),
        bad_words: Iterable[Sequence[int]] = (),
    ) -> None:
        self._vocab, self._min_tokens = vocab, min_tokens
        self._last: dict[tuple[int, ...], set[int]] = {}  # of bad words, by their other tokens
        for word in bad_words:
            self._last.setdefault(tuple(word[:-1]), set()).add(word[-1])
        self._always = self._last.pop((), set())
        self._early = self._always | set(stop_tokens)
        self._lengths = sorted({len(others) for others in self._last})
        self._masks: dict[bool, NDArray[np.uint32] | None] = {}  # made once the request runs: they are large

    def bitmask(self, generated: Sequence[int]) -> NDArray[np.int32] | None:
        """int32[ceil(vocab/32)], bit set = allowed; None where everything is. Not to be written to."""
        return self._mask(generated, len(generated) < self._min_tokens)

    def bad_words(self, generated: Sequence[int]) -> NDArray[np.int32] | None:
        """As ``bitmask``, had there been no ``min_tokens``."""
        return self._mask(generated, early=False)

    def take(self, token: int) -> bool:
        """No token completes the answer: that is for the stop tokens."""
        return False

    def _mask(self, generated: Sequence[int], early: bool) -> NDArray[np.int32] | None:
        if early not in self._masks:
            self._masks[early] = self._without(None, self._early if early else self._always)
        forbidden: set[int] = set()
        for length in self._lengths:
            forbidden |= self._last.get(tuple(generated[-length:]), set())
        allowed = self._without(self._masks[early], forbidden)
        return None if allowed is None else allowed.view(np.int32)

    def _without(self, allowed: NDArray[np.uint32] | None, tokens: set[int]) -> NDArray[np.uint32] | None:
        if not tokens:
            return allowed
        everything = np.full((self._vocab + 31) // 32, 0xFFFFFFFF, np.uint32)
        left = everything if allowed is None else allowed.copy()
        for token in tokens:
            left[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << (token % 32)))
        return left
