"""Token masks of grammars: int32 words, bit ``id % 32`` of word ``id // 32`` set where the id is allowed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_POSITIVE_INFINITY = np.uint32(0x7F800000)


def forbid(logits: NDArray[np.float32], bitmask: NDArray[np.int32]) -> None:
    """Set the logits f32[V] of ids that ``bitmask`` i32[ceil(V/32)] does not allow to -inf, in place.

    Without branches: an allowed id is bounded by +inf, any other by -inf, whose bit patterns differ in the
    sign only.
    """
    words = -(-logits.size // 32)
    if bitmask.dtype != np.int32 or bitmask.shape != (words,):
        raise ValueError(f"bitmask {bitmask.dtype}{list(bitmask.shape)}: int32[{words}] expected")
    bits = np.unpackbits(np.ascontiguousarray(bitmask).view(np.uint8), bitorder="little")[: logits.size]
    bound = (bits ^ 1).astype(np.uint32)
    bound <<= np.uint32(31)
    bound |= _POSITIVE_INFINITY
    np.minimum(logits, bound.view(np.float32), out=logits)


def pack(allowed: NDArray[np.bool_]) -> NDArray[np.int32]:
    """bool[V] -> int32[ceil(V/32)]; the bits past V are 0."""
    padded = np.zeros(-(-allowed.size // 32) * 32, np.bool_)
    padded[: allowed.size] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)
