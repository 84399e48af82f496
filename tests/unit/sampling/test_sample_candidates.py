"""Tokens from the best ones of each rank are those from all logits, row by row."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mm2c_runtime.executors.cuda.candidates import best_keys
from mm2c_runtime.sampling.keys import COUNT
from mm2c_runtime.sampling.sampler import NON_FINITE, Sampler
from mm2c_runtime.step import RowStep, SamplingParams

VOCAB = 523
GREEDY = SamplingParams(temperature=0.0)


def keys_of(logits: NDArray[np.float32], ranks: int = 2) -> NDArray[np.int64]:
    """i64[rows, ranks, COUNT + 1] of logits f32[rows, V]."""
    width = -(-logits.shape[1] // ranks)
    starts = range(0, logits.shape[1], width)
    parts = [torch.from_numpy(logits[:, start : start + width].copy()) for start in starts]
    keys = [best_keys(p, start, p.shape[1]) for start, p in zip(starts, parts, strict=True)]
    return torch.stack(keys, 1).numpy()


def logits_of(seed: int, rows: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (rows, VOCAB)).astype(np.float32)


def rows_of(params: list[SamplingParams], index: int = 0) -> list[RowStep]:
    return [RowStep(row, [1], 5, 1, True, token_index=index, sampling=own) for row, own in enumerate(params)]


def started(steps: list[RowStep]) -> Sampler:
    sampler = Sampler(VOCAB)
    for step in steps:
        sampler.observe(step)
    return sampler


params = st.one_of(
    st.just(GREEDY),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.2, 0.8, 1.0, 2.5]),
        top_k=st.integers(1, COUNT),
        top_p=st.sampled_from([0.3, 0.9, 1.0]),
        min_p=st.sampled_from([0.0, 0.05]),
        seed=st.integers(0, 2**64 - 1),
    ),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(params, min_size=1, max_size=5),
    st.sampled_from([2, 3, 4, 8]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_tokens_are_those_of_all_logits(
    chosen: list[SamplingParams], ranks: int, seed: int, ties: bool
) -> None:
    for index in (0, 7):
        logits = logits_of(seed + index, len(chosen))
        if ties:
            logits = np.round(logits)
        steps = rows_of(chosen, index)
        whole = started(steps).sample(logits, steps)
        found = started(steps).sample_candidates(keys_of(logits, ranks), steps, choose=True)
        assert found == whole


def test_greedy_takes_the_lowest_id_on_ties_of_ranks() -> None:
    logits = np.zeros((2, VOCAB), np.float32)
    logits[1, [500, 300, 261]] = 2.0
    steps = rows_of([GREEDY, GREEDY])
    found = started(steps).sample_candidates(keys_of(logits), steps, choose=True)
    assert [result.token for result in found] == [0, 261]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [3, 522])
@pytest.mark.parametrize("choose", [True, False])
def test_logits_that_are_not_finite_fail_their_row_only(bad: float, place: int, choose: bool) -> None:
    """On every rank, those that do not choose included."""
    logits = logits_of(1, 3)
    logits[1, place] = bad
    steps = rows_of([GREEDY, SamplingParams(top_k=5, seed=3), SamplingParams(top_k=5, seed=3)])
    found = started(steps).sample_candidates(keys_of(logits), steps, choose=choose)
    assert [result.error for result in found] == [None, NON_FINITE, None]
    assert found[1].token is None
    assert all((found[row].token is not None) == choose for row in (0, 2))
    if choose:
        assert found == started(steps).sample(logits, steps)


def test_rows_that_are_not_sampled_have_no_token_and_need_no_parameters() -> None:
    logits = logits_of(2, 3)
    logits[2, 100] = math.nan
    steps = [replace(step, sample=False, sampling=None) for step in rows_of([GREEDY] * 3)]
    found = Sampler(VOCAB).sample_candidates(keys_of(logits), steps, choose=True)
    assert [(r.row, r.token, r.error) for r in found] == [
        (0, None, None),
        (1, None, None),
        (2, None, NON_FINITE),
    ]


def test_a_sampled_row_without_parameters_is_a_mistake_of_the_caller() -> None:
    steps = [replace(step, sampling=None) for step in rows_of([GREEDY])]
    with pytest.raises(ValueError, match="never had sampling parameters"):
        Sampler(VOCAB).sample_candidates(keys_of(logits_of(0, 1)), steps, choose=True)
    (unasked,) = Sampler(VOCAB).sample_candidates(keys_of(logits_of(0, 1)), steps, choose=False)
    assert (unasked.token, unasked.error) == (None, None)
