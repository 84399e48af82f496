"""The best tokens of a vocabulary that is cut over ranks, as sortable keys: what the ranks exchange instead of logits.

Each rank sends its best ``COUNT`` tokens, 8 bytes each, instead of a row of logits. That is exact for a draw from at
most ``COUNT`` candidates: whatever is among the best of all is among the best of its rank.

A key holds the logit in its upper 32 bits, mapped so that integers compare as the floats do (-0 as +0), and
2^31 - 1 - id in the lower ones: greater keys are higher logits, and lower ids where logits are equal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COUNT = 64  # candidates of a row
FLAGGED = 1  # in the last column: a logit of the rank's row is NaN or infinite
NO_TOKEN = -(2**63)  # below every token's key
LAST_ID = 0x7FFFFFFF


def message_bytes(rows: int) -> int:
    """Bytes that a rank gives to the gather of a step of ``rows`` rows."""
    return rows * (COUNT + 1) * 8


def merged(keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64], bool]:
    """Of one row's keys i64[ranks, COUNT + 1]: logits f32[k] and ids i64[k] of its k <= COUNT best tokens by rising
    id, and whether every logit is finite."""
    tokens = np.sort(keys[:, :-1].reshape(-1))[::-1][:COUNT]
    tokens = tokens[tokens != NO_TOKEN]
    ordered = (tokens >> 32).astype(np.int32)
    bits = np.where(ordered < 0, ordered ^ np.int32(LAST_ID), ordered)
    ids = LAST_ID - (tokens & 0xFFFFFFFF)
    rising = np.argsort(ids)
    return bits.astype(np.int32).view(np.float32)[rising], ids[rising], not keys[:, -1].any()
