"""The cuda engine's executor with the kernels replaced by the dialect's references, on the CPU: the same program,
pages, step protocol and padding as on a GPU, beside the ONNX Runtime executor of the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_reference import SamplingOps
from paged_driver import GREEDY, Driver, InOrder, close, greedy, logits_of

from mm2c.verify.reference_ops import ReferenceOps
from mm2c_runtime.errors import RequestError
from mm2c_runtime.executors.cuda import CudaExecutor
from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.page_pool import PagePool, pool_for
from mm2c_runtime.sampling.bitmask import pack
from mm2c_runtime.sampling.sampler import NON_FINITE, NOTHING_ALLOWED
from mm2c_runtime.step import RowStep, SamplingParams, StepBatch

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 8
PROMPTS = [
    "What is 2 + 3?",
    "Hello!",
    "You are a helpful assistant. Use the tools to answer. The weather in Paris today, please.",
]


@pytest.fixture(scope="module")
def bundle(cuda_bundle: Path) -> Path:
    return cuda_bundle


@pytest.fixture(scope="module")
def oracle(cpu_bundle: Path) -> Iterator[OnnxRuntimeExecutor]:
    executor = OnnxRuntimeExecutor(cpu_bundle, read_manifest(cpu_bundle), threads=1)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def prompts(bundle: Path) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    some = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    return [*some, some[2][:9], some[2][:1]]


@pytest.fixture(scope="module")
def alone(bundle: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What each prompt is answered with when nobody else is there."""
    found = []
    for prompt in prompts:
        executor = executor_of(bundle)
        found += greedy(Driver(executor), [prompt], STEPS)
        executor.close()
    return found


@pytest.fixture
def executor(bundle: Path) -> Iterator[CudaExecutor]:
    made = executor_of(bundle)
    yield made
    made.close()


def executor_of(bundle: Path, ops: Any = None, **options: Any) -> CudaExecutor:
    return CudaExecutor(bundle, read_manifest(bundle), device="cpu", ops=ops or SamplingOps(), **options)


def test_facts(executor: CudaExecutor) -> None:
    assert (executor.limits.max_rows, executor.limits.context) == (6, 256)
    kv = executor.kv
    assert (kv.rows, kv.context, kv.page, kv.pages) == (7, 256, 64, 24)
    assert kv.bytes_per_token == 2 * 3 * 4 * 128 * 2  # K and V, layers, heads, head_dim, bf16
    assert executor.kv_tokens == 24 * 64


def test_logits_and_greedy_tokens_are_the_cpu_engines(
    executor: CudaExecutor, oracle: OnnxRuntimeExecutor, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    for prompt in prompts:
        close(logits_of(Driver(executor), prompt), logits_of(Driver(oracle), prompt))
    assert alone == greedy(Driver(oracle), prompts, STEPS)


@pytest.mark.parametrize("chunk", [1, 17, 33])
def test_prefill_in_chunks_is_one_prefill(
    executor: CudaExecutor, prompts: list[list[int]], chunk: int
) -> None:
    prompt = (prompts[2] * 4)[:90] if chunk > 1 else prompts[0][:8]
    close(logits_of(Driver(executor), prompt, chunk), logits_of(Driver(executor), prompt), 0.01)


@pytest.mark.parametrize("buckets", [[5, 6], [6], [2, 3, 5]])
def test_rows_decode_as_they_do_alone(
    executor: CudaExecutor, prompts: list[list[int]], alone: list[list[int]], buckets: list[int]
) -> None:
    """Also where a bucket is padded, which must not touch the row that is prefilling meanwhile."""
    executor._stepper.buckets = buckets
    driver = Driver(executor)
    steps = 3
    tokens = greedy(driver, prompts, steps)
    assert tokens == [row[: steps + 1] for row in alone]
    row = driver.pool.allocate(100)
    first, rest = prompts[2][:20], prompts[2][20:]
    blocks = driver.pool.take_blocks(row)
    executor.step(
        driver.batch("prefill", [RowStep(row, first, 0, 20, False, sampling=GREEDY, blocks=blocks)])
    )
    results = driver.decode([row[-1] for row in tokens])
    assert [result.token for result in results] == [row[steps + 1] for row in alone]
    last = RowStep(row, rest, 20, len(rest), True)
    assert executor.step(driver.batch("prefill", [last])).rows[0].token == alone[2][0]


def test_several_rows_prefill_padded(executor: CudaExecutor, prompts: list[list[int]]) -> None:
    driver = Driver(executor)
    some = [prompts[2][:40], prompts[0][:3], prompts[1][:1]]
    steps = []
    for prompt in some:
        row = driver.pool.allocate(100)
        steps.append(RowStep(row, prompt, 0, len(prompt), False, blocks=driver.pool.take_blocks(row)))
    logits = executor.forward(StepBatch(0, "prefill", steps))
    for found, prompt in zip(logits, some, strict=True):
        close(found, logits_of(Driver(executor), prompt), 0.01)


def test_rows_end_move_and_their_pages_are_used_again(
    executor: CudaExecutor, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    """Every row goes on saying what it says alone, whatever happens around it."""
    rng = np.random.default_rng(0)
    driver = Driver(executor)
    assert isinstance(driver.pool, PagePool)
    rows: list[tuple[int, list[int]]] = []  # by row: which prompt, and its tokens so far

    def end(row: int) -> None:
        driver.release(row)
        rows[row] = rows[-1]
        rows.pop()

    ended = 0
    for _ in range(36):
        action, which = rng.random(), int(rng.integers(len(prompts)))
        if action < 0.4 and driver.pool.fits(len(prompts[which]) + 80):
            chunk = int(rng.integers(5, 49))
            _, result = driver.prefill(prompts[which], len(prompts[which]) + 80, chunk)
            assert result.token is not None
            rows.append((which, [result.token]))
        elif action < 0.5 and rows:
            end(int(rng.integers(len(rows))))
        elif rows:
            results = driver.decode([tokens[-1] for _, tokens in rows])
            for (_, tokens), result in zip(rows, results, strict=True):
                assert result.token is not None
                tokens.append(result.token)
        for row in reversed(range(len(rows))):
            which, tokens = rows[row]
            assert tokens == alone[which][: len(tokens)]
            if len(tokens) == STEPS + 1:
                ended += 1
                end(row)
    assert ended > 1
    assert len(rows) > 1


MIXED = [
    GREEDY,
    SamplingParams(temperature=0.8, top_k=5, seed=11),
    SamplingParams(temperature=1.3, top_k=64, top_p=0.9, min_p=0.01, seed=12),
    SamplingParams(temperature=1.0, seed=13),  # all candidates: on the host
    SamplingParams(temperature=0.7, top_k=20, repetition_penalty=1.3, presence_penalty=0.5, seed=14),
]


def test_rows_sampled_here_and_there_draw_what_the_host_would(bundle: Path, prompts: list[list[int]]) -> None:
    found = []
    for ops in (SamplingOps(), ReferenceOps()):  # the latter has no sampler: all rows on the host
        driver = Driver(executor_of(bundle, ops))
        tokens = [driver.prefill(prompts[0], 60, params=params)[1].token for params in MIXED]
        story = [tokens]
        for index in range(1, 4):
            batch = driver.decode_batch([token or 0 for token in story[-1]], [index] * len(MIXED))
            batch.rows[4].history = batch.rows[4].generated = [story[-1][4] or 0]
            story.append([result.token for result in driver.executor.step(batch).rows])
        found.append(story)
        driver.executor.close()
    assert found[0] == found[1]
    assert len({tuple(column) for column in zip(*found[0], strict=True)}) > 2


def test_log_probabilities(executor: CudaExecutor, prompts: list[list[int]]) -> None:
    driver = Driver(executor)
    _, result = driver.prefill(prompts[0], 40, logprobs=3)
    expected = logits_of(Driver(executor), prompts[0]).astype(np.float64)
    expected -= expected.max() + np.log(np.exp(expected - expected.max()).sum())
    assert result.logprobs is not None
    assert result.token == result.logprobs.top[0][0] == int(expected.argmax())
    np.testing.assert_allclose(result.logprobs.chosen, expected.max(), atol=1e-5)
    assert len(result.logprobs.top) == 3


def test_masks_that_come_late_are_kept_to(executor: CudaExecutor, prompts: list[list[int]]) -> None:
    driver, vocab = Driver(executor), 736
    hot = SamplingParams(temperature=1.0, seed=3)
    params = [GREEDY, SamplingParams(temperature=1.0, top_k=3, seed=3), hot, GREEDY, hot]
    tokens = [driver.prefill(prompts[0], 60, params=one)[1].token or 0 for one in params]
    only = [np.zeros(vocab, np.bool_) for _ in range(3)]
    for mask, token in zip(only, (700, 3, 735), strict=True):
        mask[token] = True
    nothing, broken = np.zeros(vocab, np.bool_), RequestError("INVALID_ARGUMENT", "too complex")
    asked: list[int] = []
    values = [pack(only[0]), pack(only[1]), pack(only[2]), pack(nothing), broken]
    batch = driver.decode_batch(tokens)
    for number, value in enumerate(values):
        batch.rows[number].bitmask = InOrder(value, asked, number)
    results = executor.step(batch).rows
    assert [result.token for result in results] == [700, 3, 735, None, None]
    assert results[3].error == NOTHING_ALLOWED
    assert (results[4].error, results[4].code) == ("too complex", "INVALID_ARGUMENT")
    assert asked == [0, 1, 2, 3, 4]
    assert all(result.token is not None for result in driver.decode(tokens))


@pytest.mark.parametrize("ops", [SamplingOps, ReferenceOps])
def test_a_row_that_is_not_finite_fails_alone_and_leaves_nothing_behind(
    bundle: Path, prompts: list[list[int]], ops: Any
) -> None:
    executor = executor_of(bundle, ops())
    driver = Driver(executor)
    tokens = [driver.prefill(prompt, 60)[1].token or 0 for prompt in prompts[:3]]
    expected = driver.decode(tokens)
    (page,) = executor._stepper.places.tables.of(1)[:1]
    with torch.inference_mode():
        executor._stepper.places.caches[0][page, 0] = float("nan")
    found = driver.decode([result.token or 0 for result in expected])
    assert [result.error for result in found] == [None, NON_FINITE, None]
    assert not any(bool(cache[page].float().isnan().any()) for cache in executor._stepper.places.caches)
    driver.release(1)
    again = Driver(executor)
    _, result = again.prefill(prompts[1], 80)
    assert result.token == tokens[1]
    executor.close()


def test_what_is_against_the_protocol_is_refused_before_anything_runs(executor: CudaExecutor) -> None:
    def refused(message: str, kind: Any = "prefill", **fields: Any) -> None:
        step = RowStep(**{"row": 0, "tokens": [1], "past_len": 0, "new_len": 1, "sample": False, **fields})
        with pytest.raises(ValueError, match=message):
            executor.forward(StepBatch(0, kind, [step]))

    executor._stepper._model.run = lambda *_: pytest.fail("it ran")  # type: ignore[method-assign]
    refused("pages", blocks=[24])
    refused("pages", blocks=[-1])
    refused("5 pages, a full row has 4", blocks=[0, 1, 2, 3, 4])
    refused("0 \\+ 1 tokens in 0 pages")
    refused("60 \\+ 5 tokens in 1 pages", blocks=[3], past_len=60, new_len=5, tokens=[1] * 5)
    refused("places", blocks=[0], past_len=255, new_len=2, tokens=[1, 1])
    refused("neighbours", row=7, blocks=[0])
    refused("neighbours", row=-1, blocks=[0])
    refused("from 0 on", kind="decode", row=1, blocks=[0])
    refused("vocabulary", tokens=[736], blocks=[0])
    refused("vocabulary", tokens=[-1], blocks=[0])
    refused("new_len 2", new_len=2, blocks=[0])
    refused("a step takes at most 48", tokens=[1] * 49, new_len=49, blocks=[0])
    with pytest.raises(ValueError, match="at least one row"):
        executor.forward(StepBatch(0, "decode", []))


def test_a_smaller_budget_makes_fewer_pages(bundle: Path) -> None:
    executor = executor_of(bundle, kv_tokens=100)
    assert (executor.kv.pages, executor.kv_tokens) == (2, 128)
    pool = pool_for(executor.limits, executor.kv)
    assert pool.could_fit(128)
    assert not pool.could_fit(129)
    executor.close()
