"""Greedy choice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def greedy(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """The id of the highest logit of each row, the lowest id on ties: f32[..., V] -> i64[...]."""
    return np.asarray(logits.argmax(axis=-1), np.int64)
