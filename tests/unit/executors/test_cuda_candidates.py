"""The merged candidates of a cut vocabulary are those of the whole one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm2c_runtime.executors.cuda.candidates import best_keys
from mm2c_runtime.sampling.candidates import top
from mm2c_runtime.sampling.draw import draw
from mm2c_runtime.sampling.keys import COUNT, merged, message_bytes
from mm2c_runtime.step import SamplingParams


def _keys(logits: np.ndarray, ranks: int) -> np.ndarray:
    """Of one row f32[V], cut over ranks as the vocabulary is: the last rank's rows may be padding."""
    width = -(-logits.size // ranks)
    padded = np.full(ranks * width, -np.inf, np.float32)
    padded[: logits.size] = logits
    parts = []
    for rank in range(ranks):
        real = min(width, logits.size - rank * width)
        part = torch.from_numpy(padded[rank * width : (rank + 1) * width].copy())[None]
        parts.append(best_keys(part, rank * width, real)[0].numpy())
    return np.stack(parts)


@settings(max_examples=60, deadline=None)
@given(st.integers(60, 700), st.sampled_from([2, 4, 8]), st.integers(0, 2**32 - 1), st.booleans())
def test_best_tokens_and_draws_are_those_of_the_whole_vocabulary(vocab, ranks, seed, ties) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, vocab).astype(np.float32)
    if ties:
        logits = np.round(logits)  # -0 and +0 among them
    values, ids, finite = merged(_keys(logits, ranks))
    wanted = top(logits, min(COUNT, vocab))
    assert finite
    assert sorted(wanted.tolist()) == ids.tolist()
    assert np.array_equal(values, logits[ids])
    for params in (
        SamplingParams(temperature=1.0, top_k=40, top_p=0.95),
        SamplingParams(temperature=0.7, top_k=64),
        SamplingParams(temperature=1.5, top_k=5, min_p=0.1),
    ):
        uniform = float(rng.random())
        whole = draw(logits, params, uniform, np.empty(vocab))
        assert ids[draw(values, params, uniform, np.empty(values.size))] == whole
    assert ids[values.argmax()] == logits.argmax()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_told(bad: float) -> None:
    logits = np.zeros(100, np.float32)
    logits[77] = bad
    assert not merged(_keys(logits, 4))[2]


def test_padding_is_no_token() -> None:
    _, ids, finite = merged(_keys(np.zeros(9, np.float32), 4))
    assert finite
    assert ids.tolist() == list(range(9))


def test_message_size() -> None:
    keys = best_keys(torch.zeros(3, 500), 0, 500)
    assert keys.numel() * keys.element_size() == message_bytes(3)
