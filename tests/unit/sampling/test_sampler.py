from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mm2c_runtime.sampling.bitmask import forbid, pack
from mm2c_runtime.sampling.penalties import PenaltyHistory
from mm2c_runtime.sampling.sampler import NON_FINITE, Sampler
from mm2c_runtime.step import RowStep, SamplingParams

VOCAB = 100
GREEDY = SamplingParams(temperature=0.0)


def step(row: int, index: int = 0, params: SamplingParams | None = None, **more: object) -> RowStep:
    return RowStep(
        row=row, tokens=[1], past_len=5, new_len=1, sample=True, token_index=index, sampling=params, **more
    )


def logits_of(*seeds: int, vocab: int = VOCAB) -> NDArray[np.float32]:
    return np.stack([np.random.default_rng(s).normal(0, 3, vocab).astype(np.float32) for s in seeds])


def started(steps: Sequence[RowStep], vocab: int = VOCAB) -> Sampler:
    sampler = Sampler(vocab)
    for one in steps:
        sampler.observe(one)
    return sampler


def test_greedy_takes_the_lowest_id_on_ties():
    logits = np.zeros((2, VOCAB), np.float32)
    logits[1, [70, 30, 90]] = 2.0
    steps = [step(0, params=GREEDY), step(1, params=GREEDY)]
    assert [r.token for r in started(steps).sample(logits, steps)] == [0, 30]


def test_rows_that_are_not_sampled_have_no_token():
    one = step(0)
    one.sample = False
    (result,) = Sampler(VOCAB).sample(logits_of(0), [one])
    assert (result.row, result.token, result.error) == (0, None, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_fail_their_row_only(bad: float):
    logits = logits_of(0, 1, 2)
    logits[1, 33] = bad
    steps = [step(i, params=GREEDY if i < 2 else SamplingParams(seed=3)) for i in range(3)]
    results = started(steps).sample(logits, steps)
    assert [r.error for r in results] == [None, NON_FINITE, None]
    assert results[1].token is None
    assert None not in (results[0].token, results[2].token)


def test_a_row_without_parameters_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="never had sampling parameters"):
        Sampler(VOCAB).sample(logits_of(0), [step(4)])


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 6), st.integers(0, 2**64 - 1))
def test_tokens_do_not_depend_on_batch_or_row(order: list[int], size: int, seed: int):
    """Six requests of three tokens each: alone, and in shuffled batches on other rows, with moves in
    between."""
    params = [
        SamplingParams(1.0, seed=seed),
        SamplingParams(0.8, top_k=20, top_p=0.9, seed=seed),
        SamplingParams(1.0, min_p=0.05, seed=seed ^ 1),
        SamplingParams(1.0, top_p=0.7, repetition_penalty=1.3, seed=seed ^ 2),
        SamplingParams(1.2, frequency_penalty=0.4, presence_penalty=0.2, seed=seed ^ 3),
        GREEDY,
    ]
    logits = [logits_of(*range(10 * r, 10 * r + 3)) for r in range(6)]

    def tokens(groups: list[list[int]]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for group in groups:
            sampler = Sampler(VOCAB)
            row = {request: place for place, request in enumerate(group)}
            for index in range(3):
                steps = []
                for request in group:
                    news = [7, 7, 9] if index == 0 else found[request][-1:]
                    steps.append(
                        step(row[request], index, params[request] if index == 0 else None, history=news)
                    )
                    if index:
                        steps[-1].generated = news
                    sampler.observe(steps[-1])
                for request, result in zip(
                    group, sampler.sample(np.stack([logits[r][index] for r in group]), steps), strict=True
                ):
                    assert result.token is not None
                    found.setdefault(request, []).append(result.token)
                sampler.copy(row[group[0]], 50 + index)  # the first request moves to another row
                sampler.release(row[group[0]])
                row[group[0]] = 50 + index
        return found

    assert tokens([order[i : i + size] for i in range(0, 6, size)]) == tokens([[r] for r in range(6)])


@pytest.mark.parametrize("vocab", [32, 95, 100, 736])
def test_bitmask_forbids_the_clear_bits(vocab: int):
    rng = np.random.default_rng(vocab)
    allowed = rng.random(vocab) < 0.4
    mask = pack(allowed)
    assert mask.dtype == np.int32
    for token in range(vocab):
        assert bool(int(mask[token // 32]) >> (token % 32) & 1) == allowed[token]
    logits = rng.normal(0, 3, vocab).astype(np.float32)
    masked = logits.copy()
    forbid(masked, mask)
    assert np.array_equal(masked, np.where(allowed, logits, -np.inf))
    with pytest.raises(ValueError, match="int32"):
        forbid(masked, mask[:-1])


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(5.0), SamplingParams(5.0, top_k=3, top_p=0.5)])
def test_only_allowed_tokens_are_drawn(params: SamplingParams):
    allowed = np.zeros(VOCAB, np.bool_)
    allowed[[2, 64, 99]] = True
    for index in range(50):
        one = step(0, index, params, bitmask=pack(allowed))
        (result,) = started([one]).sample(logits_of(index), [one])
        assert result.token in (2, 64, 99)
    one = step(0, 0, params, bitmask=pack(np.zeros(VOCAB, np.bool_)))
    (result,) = started([one]).sample(logits_of(0), [one])
    assert result.token is None
    assert result.error is not None
    assert "allows no token" in result.error


def test_logprobs_are_of_the_raw_distribution():
    raw = logits_of(5)
    allowed = np.ones(VOCAB, np.bool_)
    allowed[int(raw.argmax())] = False
    one = step(0, 0, SamplingParams(0.3, top_k=2, repetition_penalty=2.0), bitmask=pack(allowed), logprobs=4)
    one.history = list(range(VOCAB))
    (result,) = started([one]).sample(raw, [one])
    exact = raw[0].astype(np.float64) - np.log(np.exp(raw[0].astype(np.float64)).sum())
    assert result.logprobs is not None
    assert result.token is not None
    assert result.logprobs.chosen == pytest.approx(exact[result.token], abs=1e-9)
    best = np.argsort(-exact)[:4]
    assert [i for i, _ in result.logprobs.top] == best.tolist()
    assert [p for _, p in result.logprobs.top] == pytest.approx(exact[best], abs=1e-9)
    (none,) = started([one]).sample(raw, [step(0, logprobs=0)])
    assert none.logprobs is not None
    assert none.logprobs.top == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 49), max_size=200), st.lists(st.integers(0, 49), max_size=60), st.data())
def test_penalties_by_increments_equal_the_formula(prompt: list[int], answer: list[int], data: st.DataObject):
    params = SamplingParams(
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.3, 0.7])),
        presence_penalty=data.draw(st.sampled_from([0.0, 0.5, -1.0])),
        frequency_penalty=data.draw(st.sampled_from([0.0, 0.25])),
    )
    logits = logits_of(len(prompt), vocab=50)[0]
    history = PenaltyHistory()
    history.add(prompt, [])
    for token in answer:
        history = history.copy()
        history.add([token], [token])
    found = logits.copy()
    history.apply(found, params)
    seen = np.isin(np.arange(50), prompt + answer)
    counts = np.bincount(answer, minlength=50).astype(np.float32)
    scaled = np.where(logits < 0, logits * params.repetition_penalty, logits / params.repetition_penalty)
    expected = np.where(seen, scaled, logits)
    expected = expected - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_repetition_penalty_is_transformers():
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    for seed, penalty in enumerate([1.05, 1.5, 0.8]):
        logits = logits_of(seed)[0]
        ids = np.random.default_rng(seed).integers(0, VOCAB, 40)
        history = PenaltyHistory()
        history.add(ids.tolist(), ids[20:].tolist())
        found = logits.copy()
        history.apply(found, SamplingParams(repetition_penalty=penalty))
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(
            torch.tensor(ids)[None], torch.tensor(logits)[None]
        )
        np.testing.assert_array_equal(found, theirs[0].numpy())


def test_new_parameters_start_a_row_anew():
    first = step(0, params=SamplingParams(0.0, presence_penalty=2.0), history=[5] * 3, generated=[5] * 3)
    again = step(0, params=SamplingParams(0.0, presence_penalty=2.0))
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, 5] = 1.0
    sampler = started([first])
    assert sampler.sample(logits, [step(0)])[0].token == 0
    sampler.observe(again)
    assert sampler.sample(logits, [step(0)])[0].token == 5


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e-40, 1e-30, 1e30, 1e300])
def test_extreme_penalties_stay_finite(penalty: float):
    """Any penalty greater than 0 is legal; in f32 some become 0 or infinite."""
    params = SamplingParams(0.0, repetition_penalty=penalty, frequency_penalty=2.0)
    logits = np.array([[3.0, -3.0, 0.0, 1e5, -1e5, 1.0]], np.float32)
    history = PenaltyHistory()
    history.add(range(5), [0, 1])
    changed = logits[0].copy()
    history.apply(changed, params)
    assert np.isfinite(changed).all()
    sampler = started([step(0, params=params, history=list(range(5)), generated=[0])], vocab=6)
    assert sampler.sample(logits, [step(0)])[0].token in ((0, 3) if penalty < 1 else (5,))
