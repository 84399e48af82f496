"""The highest logits in order, without sorting the vocabulary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]

_BLOCK = 64
_SORT_ALL = 512  # up to here one sort is faster than finding a threshold first


def top(logits: Logits, k: int) -> Ids:
    """Ids of the ``k`` highest logits, by (logit descending, id ascending); fewer where the others are -inf.

    ``logits`` f32[V] without NaN. The maxima of disjoint blocks give a threshold that at least ``k`` logits
    reach; only those that reach it are sorted.
    """
    size = logits.size
    threshold = np.float32(-np.inf)
    if size > _SORT_ALL and 2 * k < size:
        threshold = _reached_by(logits, k)
    if threshold == -np.inf:
        ids = np.flatnonzero(logits > threshold)
    else:
        ids = np.flatnonzero(logits >= threshold)
    order = np.argsort(-logits[ids], kind="stable")
    return np.asarray(ids[order[:k]], np.int64)


def _reached_by(logits: Logits, k: int) -> np.float32:
    """A value that at least ``k`` logits reach, close to the k-th highest."""
    size = logits.size
    block = min(_BLOCK, size // (4 * k))
    if block < 2:
        return np.float32(np.partition(logits, size - k)[size - k])
    columns = size // block
    # A block is a column of the [block, columns] view: the reduction then runs along memory.
    maxima = logits[: block * columns].reshape(block, columns).max(axis=0)
    return np.float32(np.partition(maxima, columns - k)[columns - k])
