"""Token masks of grammars: int32 words, bit ``id % 32`` of word ``id // 32`` set where the id is allowed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The bounds of eight ids for each byte of a mask: +inf where the bit is set, else -inf.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BOUNDS = np.where(_BITS == 1, np.float32(np.inf), np.float32(-np.inf))


def forbid(
    logits: NDArray[np.float32],
    bitmask: NDArray[np.int32],
    source: NDArray[np.float32] | None = None,
    scratch: NDArray[np.float32] | None = None,
) -> None:
    """Make the logits f32[V] of ids that ``bitmask`` i32[ceil(V/32)] does not allow -inf; the others are those of
    ``source`` (default: what is there).

    ``scratch``: ``bounds_like``, overwritten, so that nothing is allocated. Without branches: each logit is
    bounded from above, by a table of a mask's bytes.
    """
    words = -(-logits.size // 32)
    if bitmask.dtype != np.int32 or bitmask.shape != (words,):
        raise ValueError(f"bitmask {bitmask.dtype}{list(bitmask.shape)}: int32[{words}] expected")
    scratch = bounds_like(logits.size) if scratch is None else scratch
    np.take(_BOUNDS, np.ascontiguousarray(bitmask).view(np.uint8), axis=0, out=scratch, mode="clip")
    np.minimum(logits if source is None else source, scratch.reshape(-1)[: logits.size], out=logits)


def bounds_like(vocab: int) -> NDArray[np.float32]:
    """Scratch memory of ``forbid``: f32[ceil(V/32) * 4, 8]."""
    return np.empty((-(-vocab // 32) * 4, 8), np.float32)


def pack(allowed: NDArray[np.bool_]) -> NDArray[np.int32]:
    """bool[V] -> int32[ceil(V/32)]; the bits past V are 0."""
    padded = np.zeros(-(-allowed.size // 32) * 32, np.bool_)
    padded[: allowed.size] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)
