"""A draw from the truncated distribution by its inverse CDF."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.sampling.candidates import Ids, Logits, top
from mm2c_runtime.step import SamplingParams

_FIRST = 64  # candidates looked at first where top-k does not say how many
_GROWTH = 8


def draw(logits: Logits, params: SamplingParams, uniform: float, scratch: NDArray[np.float64]) -> int:
    """One id, a function of the arguments alone.

    Candidates are ordered by (logit descending, id ascending), which is by probability. Temperature scales
    them, top-k keeps the first k (exactly k, also where the k-th ties with the next), top-p keeps the
    shortest prefix whose share of the remaining probability is at least ``top_p``, min-p keeps those that
    have at least ``min_p`` times the highest probability. This is transformers' order; vLLM applies min-p
    before top-k and top-p, which with min-p and top-p both set may keep fewer. The result is the first
    candidate whose cumulative weight exceeds ``uniform`` times the total weight, all in f64.

    ``logits`` f32[V] with -inf where forbidden, at least one finite; ``scratch`` f64[V] is overwritten.
    """
    if params.top_k > 0:
        ids = top(logits, params.top_k)
        cumulative, complete = _kept(logits, ids, params, None)
        return _invert(ids, cumulative, uniform * cumulative[-1])
    total = _total_weight(logits, params.temperature, scratch) if _needs_total(params) else None
    unlimited = params.top_p >= 1.0 and params.min_p <= 0.0
    for ids in _prefixes(logits):
        cumulative, complete = _kept(logits, ids, params, total)
        if unlimited and total is not None:
            target = uniform * total
            complete = cumulative[-1] > target
        else:
            target = uniform * cumulative[-1]
        if complete:
            break
    return _invert(ids, cumulative, target)


def _prefixes(logits: Logits) -> Iterator[Ids]:
    """Longer and longer prefixes of the ordered candidates; the last one has all of them."""
    count = _FIRST
    while count < logits.size:
        yield top(logits, count)
        count *= _GROWTH
    yield top(logits, logits.size)


def _kept(
    logits: Logits, ids: Ids, params: SamplingParams, total: float | None
) -> tuple[NDArray[np.float64], bool]:
    """Cumulative weights of the candidates that top-p and min-p keep of the prefix ``ids``, and whether what
    lies beyond the prefix is certainly cut. The highest weight is 1."""
    weights = _weights(logits[ids], params.temperature)
    cumulative = np.cumsum(weights)
    share = params.top_p * (cumulative[-1] if total is None else total)
    by_share = ids.size if params.top_p >= 1.0 else int(np.searchsorted(cumulative, share, side="left")) + 1
    by_ratio = int(np.searchsorted(-weights, -params.min_p, side="right"))
    kept = min(by_share, by_ratio)
    return cumulative[: max(kept, 1)], kept < ids.size


def _weights(ordered: Logits, temperature: float) -> NDArray[np.float64]:
    """exp((logit - highest) / temperature) of logits in descending order."""
    below = ordered.astype(np.float64) - float(ordered[0])
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, whose weight is 0
        return np.asarray(np.exp(below / temperature))


def _needs_total(params: SamplingParams) -> bool:
    return params.top_p < 1.0 or params.min_p <= 0.0


def _total_weight(logits: Logits, temperature: float, scratch: NDArray[np.float64]) -> float:
    """The weights of the whole vocabulary, summed in the order of ids."""
    np.subtract(logits, float(logits.max()), out=scratch, dtype=np.float64)
    with np.errstate(over="ignore"):
        np.divide(scratch, temperature, out=scratch)
    return float(np.exp(scratch, out=scratch).sum())


def _invert(ids: Ids, cumulative: NDArray[np.float64], target: float) -> int:
    """The first candidate whose cumulative weight exceeds ``target``; or the last one."""
    return int(ids[min(int(np.searchsorted(cumulative, target, side="right")), cumulative.size - 1)])
