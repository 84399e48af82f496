"""What the ranks of a cut vocabulary exchange: when all logits must travel, and that both ways give the same."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from mm2c_runtime.executors.cuda.collectives import SingleRank
from mm2c_runtime.executors.cuda.cut_head import CutHead, need_whole_logits
from mm2c_runtime.executors.cuda.program import Head
from mm2c_runtime.sampling.keys import COUNT, merged
from mm2c_runtime.step import RowStep, SamplingParams

VOCAB, WIDTH = 301, 151
GREEDY = SamplingParams(temperature=0.0)
FEW = SamplingParams(temperature=0.7, top_k=COUNT, top_p=0.9, min_p=0.1, seed=4)


def row(number: int = 0, *, sample: bool = True, **more: Any) -> RowStep:
    return RowStep(number, [1], 5, 1, sample, **more)


@pytest.mark.parametrize(
    ("params", "more", "needed"),
    [
        (GREEDY, {}, False),
        (FEW, {}, False),
        (SamplingParams(temperature=1.0, top_k=1), {}, False),
        (SamplingParams(temperature=0.0, top_k=COUNT + 1), {}, False),  # greedy, whatever its top_k
        (SamplingParams(temperature=0.0, top_k=0), {}, False),
        (SamplingParams(temperature=1.0, top_k=COUNT + 1), {}, True),
        (SamplingParams(temperature=1.0), {}, True),  # top_k is off: from all tokens
        (SamplingParams(temperature=1.0, top_p=0.1), {}, True),
        (SamplingParams(temperature=0.0, repetition_penalty=1.1), {}, True),
        (SamplingParams(temperature=0.0, presence_penalty=0.1), {}, True),
        (SamplingParams(temperature=0.7, top_k=5, frequency_penalty=-0.1), {}, True),
        (GREEDY, {"bitmask": np.zeros(10, np.int32)}, True),
        (FEW, {"bitmask": Future()}, True),  # one that is not there yet is not waited for
        (GREEDY, {"logprobs": 0}, True),
        (FEW, {"logprobs": 3}, True),
    ],
)
def test_when_all_logits_are_needed(params: SamplingParams, more: dict[str, Any], needed: bool) -> None:
    assert need_whole_logits([row(**more)], [params]) == needed
    assert need_whole_logits([row(), row(1, **more), row(2)], [FEW, params, GREEDY]) == needed


def test_a_row_that_is_not_sampled_needs_none() -> None:
    idle = row(1, sample=False, bitmask=np.zeros(10, np.int32), logprobs=2)
    assert not need_whole_logits([row(), idle], [GREEDY, None])
    assert not need_whole_logits([], [])


class Ranks(SingleRank):
    """One of several ranks. The others have given their parts to gathers already: ``given`` is by rank."""

    def __init__(self, rank: int, given: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.rank, self.given, self.made = rank, given, []

    def make_groups(self, groups: Any) -> None:
        self.made += groups

    def all_gather(self, x: torch.Tensor, axis: int, group: tuple[int, ...]) -> torch.Tensor:
        assert self.rank in group
        self.given[self.rank] = x
        return torch.cat([self.given.get(other, x) for other in group], axis)


@pytest.mark.parametrize("groups", [[(0, 1)], [(0, 1), (2, 3)]])
def test_both_exchanges_are_of_a_groups_own_logits(groups: list[tuple[int, ...]]) -> None:
    """The last group's; the last rank's last column is padding."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (4, VOCAB)).astype(np.float32))
    first, second = groups[-1]
    parts = {first: logits[:, :WIDTH], second: logits[:, WIDTH:]}
    parts[second] = torch.nn.functional.pad(parts[second], (0, 1), value=-torch.inf)
    heads = {first: Head(0, WIDTH, WIDTH), second: Head(WIDTH, WIDTH - 1, WIDTH)}
    wholes: dict[int, torch.Tensor] = {}
    keys: dict[int, torch.Tensor] = {}
    for rank in (first, second):  # the second has the parts of both
        cut = CutHead(heads[rank], VOCAB, Ranks(rank, wholes), groups)
        whole = cut.whole(parts[rank])
        exchange = Ranks(rank, keys)
        best = CutHead(heads[rank], VOCAB, exchange, groups).candidates(parts[rank])
        assert exchange.made == groups
    assert torch.equal(whole, logits)
    assert best.shape == (4, 2, COUNT + 1)
    for place in range(4):
        values, ids, finite = merged(best[place].numpy())
        own = logits[place].numpy()
        assert finite
        assert sorted(np.argsort(-own)[:COUNT].tolist()) == ids.tolist()
        np.testing.assert_array_equal(values, own[ids])
