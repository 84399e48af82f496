"""sample_chunks and sample_pick against the Sampler of the runtime, token for token, in the interpreter.

Temperatures and the like are numbers that f32 has, for that is what the kernels are given.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mm2c_plugins.kernels.sample_chunks import sample_chunks
from mm2c_plugins.kernels.sample_pick import sample_pick
from mm2c_runtime.sampling.bitmask import pack
from mm2c_runtime.sampling.sampler import NON_FINITE, Sampler
from mm2c_runtime.sampling.uniform import TokenUniform
from mm2c_runtime.step import RowStep, SamplingParams

GREEDY = SamplingParams(temperature=0.0, top_k=1)
SMALL = {"chunk": 256, "kept": 16, "group": 4}  # a smaller form of the kernels: fewer candidates, faster here


def exact(params: SamplingParams) -> SamplingParams:
    """The same with f32 numbers."""
    names = ("temperature", "top_p", "min_p")
    return replace(params, **{name: float(np.float32(getattr(params, name))) for name in names})


def by_kernels(
    logits: np.ndarray,
    params: list[SamplingParams],
    indices: list[int],
    masks: np.ndarray | None = None,
    chunk: int = 256,
    kept: int = 64,
    group: int = 4,
) -> tuple[list[int], list[int]]:
    rows, vocab = logits.shape
    chunks, words = math.ceil(vocab / chunk), math.ceil(vocab / 32)
    mask = torch.from_numpy(np.zeros((rows, words), np.int32) if masks is None else masks)
    keys = torch.full((rows, chunks, kept), 12345, dtype=torch.int64)
    flags = torch.full((rows, chunks), 99, dtype=torch.int32)
    sample_chunks[(chunks, rows)](
        torch.from_numpy(logits),
        mask,
        keys,
        flags,
        vocab,
        words,
        int(masks is not None),
        CHUNK=chunk,
        KC=kept,
        PDL=False,
    )
    uniform = TokenUniform()
    draws = np.array([uniform(p.seed, i) for p, i in zip(params, indices, strict=True)])
    column = {
        name: torch.tensor([getattr(p, name) for p in params]) for name in ("temperature", "top_p", "min_p")
    }
    tokens, status = torch.full((rows,), -7, dtype=torch.int32), torch.full((rows,), -7, dtype=torch.int32)
    sample_pick[(rows,)](
        keys,
        flags,
        column["temperature"].float(),
        torch.tensor([p.top_k for p in params], dtype=torch.int32),
        column["top_p"].float(),
        column["min_p"].float(),
        torch.from_numpy(draws.view(np.int64)),
        tokens,
        status,
        chunks,
        GROUP=group,
        KC=kept,
        PDL=False,
    )
    return tokens.tolist(), status.tolist()


def by_sampler(
    logits: np.ndarray, params: list[SamplingParams], indices: list[int], masks: np.ndarray | None = None
) -> tuple[list[int], list[int]]:
    sampler = Sampler(logits.shape[1])
    steps = [
        RowStep(row, [0], 0, 1, True, index, p, bitmask=None if masks is None else masks[row])
        for row, (p, index) in enumerate(zip(params, indices, strict=True))
    ]
    for step in steps:
        sampler.observe(step)
    results = sampler.sample(logits, steps)
    status = [0 if r.error is None else 1 if r.error == NON_FINITE else 2 for r in results]
    return [-1 if r.token is None else r.token for r in results], status


def check(
    logits: np.ndarray,
    params: list[SamplingParams],
    indices: list[int],
    masks: np.ndarray | None = None,
    **shape: int,
) -> list[int]:
    params = [exact(p) for p in params]
    tokens, status = by_kernels(logits, params, indices, masks, **shape)
    assert (tokens, status) == by_sampler(logits, params, indices, masks)
    return tokens


def random_params(rng: np.random.Generator, count: int, most: int = 16) -> list[SamplingParams]:
    return [
        SamplingParams(
            temperature=float(rng.choice([0.0, 1e-30, 1e-3, 0.3, 0.7, 1.0, 1.7, 50.0])),
            top_k=min(int(rng.choice([1, 2, 5, 11, 15, 16, 20, 40, 63, 64])), most),
            top_p=float(rng.choice([0.0, 0.1, 0.5, 0.9, 0.95, 1.0])),
            min_p=float(rng.choice([0.0, 0.0, 0.05, 0.3, 1.0])),
            seed=int(rng.integers(2**63)) * 2 + 1,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("vocab", "rows", "shape"),
    [
        (40, 4, {}),
        (403, 4, {"group": 1}),
        (30, 8, SMALL),
        (250, 16, SMALL),
        (603, 6, {**SMALL, "group": 2}),
    ],
)
def test_random_rows(vocab: int, rows: int, shape: dict[str, int]) -> None:
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 3, (rows, vocab)).astype(np.float32)
    masks = np.stack([pack(rng.random(vocab) < rng.choice([0.02, 0.5, 1.0])) for _ in range(rows)])
    params = random_params(rng, rows, shape.get("kept", 64))
    check(logits, params, list(range(rows)), masks, **shape)


def test_ties_go_to_the_lowest_id_and_zeros_are_equal() -> None:
    """Logits of a handful of values, so that top-k cuts ties, within and between chunks."""
    rng = np.random.default_rng(5)
    rows, vocab = 10, 500
    values = np.array([-1.0, -0.0, 0.0, -0.0, 1.0, 1.5], np.float32)
    logits = values[rng.integers(0, 4, (rows, vocab))]
    logits[rows // 2 :] = values[rng.integers(0, 6, (rows // 2, vocab))]
    check(logits, random_params(rng, rows), list(range(rows)), **SMALL)
    zeros = np.zeros((2, 300), np.float32)
    zeros[0, :17] = -0.0
    zeros[1, 17:] = -0.0
    assert check(zeros, [GREEDY, GREEDY], [0, 0], **SMALL) == [0, 0]
    assert check(zeros, [GREEDY, GREEDY], [0, 0], kept=1) == [0, 0]


def test_extreme_logits() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 1, (6, 300)).astype(np.float32)
    largest = np.finfo(np.float32).max
    logits[:, 10] = largest
    logits[::2, 290] = largest
    logits[:, 11] = -largest
    logits[::3] *= np.float32(1e-42)  # subnormal
    logits[::3, 10:12] = 1e-44
    check(logits, random_params(rng, 6), list(range(6)), **SMALL)


def test_fewer_allowed_than_top_k_and_nothing_allowed() -> None:
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 1, (5, 500)).astype(np.float32)
    allowed = np.zeros((5, 500), bool)
    for row in range(1, 5):
        allowed[row, rng.choice(500, row, replace=False)] = True
    masks = np.stack([pack(row) for row in allowed])
    for params in (SamplingParams(temperature=1.0, top_k=16), GREEDY):
        tokens = check(logits, [params] * 5, list(range(5)), masks, **SMALL)
        assert tokens[0] == -1
        assert all(allowed[row, tokens[row]] for row in range(1, 5))
    check(logits, [GREEDY] * 5, list(range(5)), masks, kept=1)


@pytest.mark.parametrize(("kept", "value"), [(1, math.nan), (1, math.inf), (1, -math.inf), (16, -math.inf)])
def test_non_finite_logits_are_status_1_also_where_forbidden(kept: int, value: float) -> None:
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 1, (4, 520)).astype(np.float32)
    logits[1, 3] = logits[2, 519] = value
    allowed = np.ones((4, 520), bool)
    allowed[2, 519] = False
    allowed[3] = False
    masks = np.stack([pack(row) for row in allowed])
    tokens, status = by_kernels(logits, [GREEDY] * 4, [0] * 4, masks, kept=kept)
    assert (tokens, status) == by_sampler(logits, [GREEDY] * 4, [0] * 4, masks)
    assert status == [0, 1, 1, 2]


def test_greedy_form() -> None:
    """KC = 1, more chunks than a group, a vocabulary of a whole number of words but not of chunks."""
    rng = np.random.default_rng(9)
    logits = rng.integers(-40, 40, (6, 6656)).astype(np.float32) / 8
    check(logits, [GREEDY] * 6, [0] * 6, kept=1, group=8)
    masks = np.stack([pack(rng.random(6656) < 0.3) for _ in range(6)])
    check(logits, [GREEDY] * 6, [0] * 6, masks, kept=1, group=8)


def test_one_chunk_holds_all_the_best() -> None:
    """And in descending order, in ascending order, and one in each chunk."""
    vocab = 2048
    logits = np.zeros((4, vocab), np.float32)
    logits[0, 1024:1280] = np.arange(256) + 1
    logits[1] = -np.arange(vocab)
    logits[2] = np.arange(vocab)
    logits[3, 5::256] = 9
    params = [SamplingParams(temperature=30.0, top_k=64, seed=11)] * 4
    check(logits, [replace(p, top_k=16) for p in params], list(range(4)), chunk=1024, kept=16, group=2)


def test_ends_of_the_unit_interval() -> None:
    """The smallest and the largest draw there are take the first and the last candidate."""
    logits = np.zeros((2, 100), np.float32)
    keys = torch.empty((2, 1, 64), dtype=torch.int64)
    flags = torch.empty((2, 1), dtype=torch.int32)
    none = torch.zeros((2, 4), dtype=torch.int32)
    sample_chunks[(1, 2)](torch.from_numpy(logits), none, keys, flags, 100, 4, 0, CHUNK=256, KC=64, PDL=False)
    uniform = torch.from_numpy(np.array([0.0, 1 - 2.0**-53]).view(np.int64))
    tokens, status = torch.empty(2, dtype=torch.int32), torch.empty(2, dtype=torch.int32)
    ones, ks = torch.ones(2), torch.full((2,), 50, dtype=torch.int32)
    sample_pick[(2,)](
        keys, flags, ones, ks, ones, ones * 0, uniform, tokens, status, 1, GROUP=1, KC=64, PDL=False
    )
    assert (tokens.tolist(), status.tolist()) == ([0, 49], [0, 0])
