"""The random number of a token: a pure function of the request's seed and the token's index."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Philox

_MASK64 = (1 << 64) - 1


class TokenUniform:
    """``uniform(seed, index)``: a double in [0, 1) from Philox4x64-10 with key = (seed, 0).

    It is ``Generator(Philox(key=seed, counter=index)).random()``: the top 53 bits of the first word of the
    block that follows counter ``index``. One generator is kept and re-keyed, because constructing one costs
    more than twice as much. Not thread-safe.
    """

    def __init__(self) -> None:
        self._philox = Philox(key=0)
        # Assigning ``state`` copies it, so that one dict with two live arrays serves every call.
        self._state: Any = dict(self._philox.state)
        self._key = np.zeros(2, np.uint64)
        self._counter = np.zeros(4, np.uint64)
        self._state["state"] = {"counter": self._counter, "key": self._key}
        self._state["buffer_pos"] = 4  # an empty block: the next draw computes one
        self._state["has_uint32"] = 0

    def __call__(self, seed: int, index: int) -> float:
        self._key[0] = seed & _MASK64
        self._counter[0] = index
        self._philox.state = self._state
        return (int(self._philox.random_raw()) >> 11) * 2.0**-53
