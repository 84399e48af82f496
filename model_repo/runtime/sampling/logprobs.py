"""Log probabilities of the model's own distribution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.sampling.candidates import top
from mm2c_runtime.step import TokenLogprobs


def token_logprobs(logits: NDArray[np.float32], token: int, alternatives: int) -> TokenLogprobs:
    """Of the raw logits f32[V]: the chosen token's, and the ``alternatives`` most probable ones with theirs.

    Natural logarithms, the sum over the vocabulary in f64.
    """
    highest = float(logits.max())
    shifted = np.subtract(logits, highest, dtype=np.float64)
    normaliser = highest + float(np.log(np.exp(shifted, out=shifted).sum()))
    ranked = top(logits, alternatives) if alternatives else np.empty(0, np.int64)
    return TokenLogprobs(
        chosen=float(logits[token]) - normaliser,
        top=[(int(i), float(logits[i]) - normaliser) for i in ranked],
    )
