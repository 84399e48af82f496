from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mm2c_runtime.sampling.candidates import top
from mm2c_runtime.sampling.draw import draw
from mm2c_runtime.sampling.uniform import TokenUniform
from mm2c_runtime.step import SamplingParams

CHI_SQUARE_999 = {9: 27.88, 19: 43.82, 39: 72.05}  # 0.999 quantiles by degrees of freedom


def ordered(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """All ids by a full sort: (logit descending, id ascending), the forbidden ones left out."""
    ids = np.lexsort((np.arange(logits.size), -logits))
    return ids[logits[ids] > -np.inf]


def distribution(
    logits: NDArray[np.float32], params: SamplingParams
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and probabilities of what the filters keep, the plain way."""
    ids = ordered(logits)
    if params.top_k:
        ids = ids[: params.top_k]
    weights = np.exp((logits[ids].astype(np.float64) - float(logits[ids[0]])) / params.temperature)
    if params.top_p < 1:
        kept = np.concatenate([[0.0], np.cumsum(weights)[:-1]]) < params.top_p * weights.sum()
        ids, weights = ids[kept], weights[kept]
    kept = weights >= params.min_p * weights[0]
    ids, weights = ids[kept], weights[kept]
    return ids, weights / weights.sum()


def pick(logits: NDArray[np.float32], params: SamplingParams, uniform: float) -> int:
    return draw(logits, params, uniform, np.empty(logits.size, np.float64))


def some_logits(size: int, seed: int, spread: float, forbidden: float, ties: bool) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, size).astype(np.float32)
    if ties:
        logits = np.round(logits)
    logits[1:][rng.random(size - 1) < forbidden] = -np.inf
    return logits


LOGITS = st.builds(
    some_logits,
    st.sampled_from([1, 2, 31, 64, 513, 736, 5000]),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.5, 3.0, 20.0]),
    st.sampled_from([0.0, 0.3, 0.99]),
    st.booleans(),
)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.05, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 0, 1, 2, 40, 10_000]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 1.0]),
)


@settings(max_examples=200, deadline=None)
@given(LOGITS, st.sampled_from([1, 2, 7, 40, 64, 512, 6000]))
def test_top_is_the_head_of_the_full_sort(logits: NDArray[np.float32], k: int):
    assert top(logits, k).tolist() == ordered(logits)[:k].tolist()


@settings(max_examples=300, deadline=None)
@given(LOGITS, PARAMS, st.floats(0, 1, exclude_max=True))
def test_draw_equals_the_full_sort(logits: NDArray[np.float32], params: SamplingParams, uniform: float):
    ids, probabilities = distribution(logits, params)
    cumulative = np.cumsum(probabilities)
    expected = int(np.searchsorted(cumulative, uniform, side="right"))
    place = ids.tolist().index(pick(logits, params, uniform))
    low, high = (cumulative[place - 1] if place else 0.0), cumulative[place]
    # normalising rounds: on a border either neighbour is right
    assert place == min(expected, ids.size - 1) or low - 1e-12 <= uniform <= high + 1e-12


@pytest.mark.parametrize(
    ("params", "freedom"),
    [
        (SamplingParams(), 39),
        (SamplingParams(temperature=0.7), 39),
        (SamplingParams(top_k=10), 9),
        (SamplingParams(temperature=1.5, top_k=20), 19),
    ],
)
def test_frequencies_are_the_probabilities(params: SamplingParams, freedom: int):
    logits = np.random.default_rng(4).normal(0, 1, 40).astype(np.float32)
    ids, probabilities = distribution(logits, params)
    assert ids.size == freedom + 1
    uniform, draws = TokenUniform(), 8000
    counts = np.bincount([pick(logits, params, uniform(11, i)) for i in range(draws)], minlength=40)
    assert counts.sum() == counts[ids].sum()
    expected = draws * probabilities
    assert ((counts[ids] - expected) ** 2 / expected).sum() < CHI_SQUARE_999[freedom]


def test_large_vocabulary_without_filters_is_exact():
    logits = np.random.default_rng(1).normal(0, 2, 200_064).astype(np.float32)
    ids, probabilities = distribution(logits, SamplingParams())
    cumulative = np.cumsum(probabilities)
    for uniform in (0.0, 0.001, 0.5, 0.9, 0.999999):
        assert (
            pick(logits, SamplingParams(), uniform) == ids[np.searchsorted(cumulative, uniform, side="right")]
        )
        nucleus = SamplingParams(top_p=0.6)
        kept = np.searchsorted(cumulative, 0.6) + 1
        target = uniform * cumulative[kept - 1]
        assert pick(logits, nucleus, uniform) == ids[np.searchsorted(cumulative, target, side="right")]


@pytest.mark.parametrize("temperature", [1e-6, 1e-320, 1e6])
def test_extreme_temperatures(temperature: float):
    logits = np.asarray([0.0, 5.0, 4.0, -1000.0], np.float32)
    token = pick(logits, SamplingParams(temperature=temperature), 0.1)
    assert token == 1 or temperature > 1


def test_filters_keep_what_transformers_keeps():
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as hf

    for seed in range(4):
        logits = np.random.default_rng(seed).normal(0, 3, 200).astype(np.float32)
        for params in (
            SamplingParams(temperature=0.8, top_k=17),
            SamplingParams(temperature=1.3, top_p=0.83),
            SamplingParams(temperature=1.0, top_k=40, top_p=0.95),
            SamplingParams(temperature=0.6, min_p=0.07),
            SamplingParams(temperature=1.1, top_k=30, top_p=0.9, min_p=0.02),
        ):
            scores = hf.TemperatureLogitsWarper(params.temperature)(None, torch.tensor(logits)[None])
            if params.top_k:
                scores = hf.TopKLogitsWarper(params.top_k)(None, scores)
            if params.top_p < 1:
                scores = hf.TopPLogitsWarper(params.top_p)(None, scores)
            if params.min_p:
                scores = hf.MinPLogitsWarper(params.min_p)(None, scores)
            kept = torch.isfinite(scores[0]).nonzero().flatten().tolist()
            drawn = {pick(logits, params, u) for u in np.linspace(0, 0.999999, 700)}
            assert drawn <= set(kept)
            theirs = torch.softmax(scores[0].double(), -1).numpy()
            assert {i for i in kept if theirs[i] > 2e-3} <= drawn
