"""Which tokens a request may sample next, as the step protocol's bitmask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class AllowedTokens:
    """Forbids the stop tokens until ``min_tokens`` are generated, and the last token of every bad word whose
    other tokens have just been generated."""

    def __init__(
        self,
        vocab: int,
        *,
        min_tokens: int = 0,
        stop_tokens: Iterable[int] = (),
        bad_words: Iterable[Sequence[int]] = (),
    ) -> None:
        self._vocab = vocab
        self._min_tokens = min_tokens
        self._stop_tokens = tuple(stop_tokens)
        self._bad_words = tuple(tuple(word) for word in bad_words)

    def bitmask(self, generated: Sequence[int]) -> NDArray[np.int32] | None:
        """int32[ceil(vocab/32)], bit set = allowed; None where everything is."""
        forbidden = set(self._stop_tokens) if len(generated) < self._min_tokens else set()
        for word in self._bad_words:
            before = len(word) - 1
            if before == 0 or tuple(generated[-before:]) == word[:-1]:
                forbidden.add(word[-1])
        if not forbidden:
            return None
        words = np.full((self._vocab + 31) // 32, 0xFFFFFFFF, np.uint32)
        for token in forbidden:
            words[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << (token % 32)))
        return words.view(np.int32)
