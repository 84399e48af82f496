"""The executor for TensorRT on toy plans that a double of the library runs; with the real graphs in tests/numerics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorrt_double import double
from toy_plans import CHUNK, CONTEXT, FEW, NAN_TOKEN, ROWS, VOCAB, close, expected, write_bundle

from mm2c_runtime.errors import RequestError
from mm2c_runtime.executors.base import RankExecutor
from mm2c_runtime.executors.tensorrt import TensorRTExecutor
from mm2c_runtime.page_pool import pool_for
from mm2c_runtime.sampling.sampler import NON_FINITE
from mm2c_runtime.scheduling.scheduler import Scheduler
from mm2c_runtime.scheduling.sequence import Sequence
from mm2c_runtime.step import RowCopy, RowStep, SamplingParams, StepBatch

GREEDY = SamplingParams(temperature=0.0)


def made(folder: Path, **options: Any) -> TensorRTExecutor:
    kinds = {name: options.pop(name) for name in ("paged", "all_logits") if name in options}
    return TensorRTExecutor(folder, write_bundle(folder, **kinds), device="cpu", library=double(), **options)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[TensorRTExecutor]:
    executor = made(tmp_path)
    yield executor
    executor.close()


@pytest.fixture(params=[False, True], ids=["rows", "pages"])
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TensorRTExecutor]:
    executor = made(tmp_path, paged=request.param)
    yield executor
    executor.close()


def blocks(executor: TensorRTExecutor, row: int) -> list[int]:
    """All pages of a full row, the last rows' first; none where rows are linear."""
    each = CONTEXT // executor.kv.page if executor.kv.page else 0
    return [(ROWS - 1 - row) * each + n for n in range(each)]


def prefill(executor: TensorRTExecutor, row: int, tokens: list[int], past: int = 0) -> StepBatch:
    pages = [] if past else blocks(executor, row)
    one = RowStep(row, tokens, past, len(tokens), True, sampling=None if past else GREEDY, blocks=pages)
    return StepBatch(0, "prefill", [one])


def decode(tokens: list[int], pasts: list[int], **more: object) -> StepBatch:
    rows = [RowStep(i, [t], p, 1, True) for i, (t, p) in enumerate(zip(tokens, pasts, strict=True))]
    return StepBatch(1, "decode", rows, **more)  # type: ignore[arg-type]


def shapes(executor: TensorRTExecutor) -> dict[str, list[tuple[int, int]]]:
    """Rows and tokens of the runs of every plan's first context."""
    opened = executor._model._opened.values()  # type: ignore[attr-defined]
    return {plan.plan.name: [run for c in plan.engine.contexts for run in c.runs] for plan in opened}


def test_it_is_an_executor(executor: TensorRTExecutor) -> None:
    of_a_rank: RankExecutor = executor
    kv = of_a_rank.kv
    assert (kv.rows, kv.context, kv.bytes_per_token) == (ROWS + 1, CONTEXT, 2 * 4 * 128 * 2)
    assert (kv.page, kv.pages) in ((0, 0), (4, ROWS * CONTEXT // 4))
    assert of_a_rank.kv_tokens == ROWS * CONTEXT
    assert of_a_rank.limits.max_rows == ROWS


def test_chunks_then_decode(executor: TensorRTExecutor) -> None:
    said = [3, 1, 4, 1, 5, 2, 6, 5]
    executor.step(prefill(executor, 0, said[:3]))
    logits = executor.forward(prefill(executor, 0, said[3:7], past=3))
    assert close(logits[0], expected(said[:7]))
    assert close(executor.forward(decode([said[7]], [7]))[0], expected(said))
    result = executor.step(decode([2], [8])).rows[0]
    assert result.token == int(expected([*said, 2]).argmax())
    assert executor.forward_seconds > 0


def test_every_number_of_rows_runs_the_plan_for_it(rows: TensorRTExecutor) -> None:
    """Linear rows are not padded: the row behind the last one belongs to someone else."""
    for row in range(ROWS):
        rows.step(prefill(rows, row, [row % 9, 1]))
    before = {name: len(runs) for name, runs in shapes(rows).items()}
    for count in (3, FEW, FEW + 1, ROWS):
        logits = rows.forward(decode([2] * count, [2] * count))
        assert close(logits, np.stack([expected([row % 9, 1, 2]) for row in range(count)]))
    after = {name: runs[before[name] :] for name, runs in shapes(rows).items()}
    assert set(after["decode.first"]) == {(3, 1), (FEW, 1)}
    assert len(after["decode.middle"]) == 2 * len(after["decode.first"])
    assert (FEW + 1, 1) in shapes(rows)["prefill.first"]
    assert (ROWS, 1) in shapes(rows)["prefill.first"]


def test_a_decode_step_leaves_the_rows_above_alone(executor: TensorRTExecutor) -> None:
    executor.step(prefill(executor, 0, [1, 2, 3]))
    executor.step(prefill(executor, 1, [4, 5, 6, 7]))
    executor.step(prefill(executor, 2, [8, 7]))  # still prefilling
    executor.step(decode([1, 1], [3, 4]))
    executor.step(decode([1], [4]))
    assert close(executor.forward(prefill(executor, 2, [6], past=2))[0], expected([8, 7, 6]))


def test_rows_move(executor: TensorRTExecutor) -> None:
    executor.step(prefill(executor, 0, [1, 2, 3, 4, 5]))
    executor.step(prefill(executor, 1, [6, 7]))
    executor.step(prefill(executor, 5, [8]))
    moved = decode([3, 4], [1, 2], released=[0], copies=[RowCopy(5, 0, 1)])
    assert close(executor.forward(moved), np.stack([expected([8, 3]), expected([6, 7, 4])]))
    assert close(executor.forward(prefill(executor, 5, [1]))[0], expected([1]))


def test_several_rows_prefill_one_after_another(executor: TensorRTExecutor) -> None:
    some = [[1, 2, 3, 4, 5], [6], [7, 8], [1, 1, 1]]
    steps = [RowStep(2 + i, t, 0, len(t), False, blocks=blocks(executor, 2 + i)) for i, t in enumerate(some)]
    logits = executor.forward(StepBatch(0, "prefill", steps))
    assert close(logits, np.stack([expected(tokens) for tokens in some]))
    first = next(runs for name, runs in shapes(executor).items() if name in ("prefill.first", "step.first"))
    assert {(1, 5), (1, 2), (1, 3)} <= set(first)  # the row of one token may be the decode plan's


@pytest.mark.parametrize("paged", [False, True])
def test_all_logits(tmp_path: Path, paged: bool) -> None:
    executor = made(tmp_path, paged=paged, all_logits=True)
    some = [[1, 2, 3], [4]]
    steps = [
        RowStep(i, t, 0, len(t), True, sampling=GREEDY, blocks=blocks(executor, i))
        for i, t in enumerate(some)
    ]
    logits = executor.forward(StepBatch(0, "prefill", steps))
    assert logits.shape == (2, 3, VOCAB)
    for index in range(3):
        assert close(logits[0, index], expected([1, 2, 3][: index + 1]))
    assert close(logits[1, 0], expected([4]))
    tokens = [row.token for row in executor.step(StepBatch(0, "prefill", steps)).rows]
    assert tokens == [int(expected(row).argmax()) for row in some]
    assert executor.forward(decode([2, 2], [3, 1])).shape == (2, 1, VOCAB)
    executor.close()


def test_a_nan_leaves_nothing_behind(executor: TensorRTExecutor) -> None:
    executor.step(prefill(executor, 0, [1, 2]))
    executor.step(prefill(executor, 1, [1, 2]))
    first, second = executor.step(decode([NAN_TOKEN, 3], [2, 2])).rows
    assert (first.token, first.error) == (None, NON_FINITE)
    assert (second.token, second.error) == (int(expected([1, 2, 3]).argmax()), None)
    assert executor.step(prefill(executor, 0, [4])).rows[0].token == int(expected([4]).argmax())


class Graphs:
    """In place of CUDA graphs: remembers what it is to run; a replay reads the same buffers."""

    replayed: ClassVar[list[int]] = []

    def __init__(self, run: Callable[[int], None], sizes: list[int], device: torch.device) -> None:
        self.run = run
        for rows in sizes:
            run(rows)

    def replay(self, rows: int) -> None:
        self.replayed.append(rows)
        self.run(rows)

    def close(self) -> None:
        self.replayed.append(0)


def test_decode_steps_are_captured(executor: TensorRTExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of linear rows every number up to 16, and larger steps run as they are; of pages the buckets."""
    monkeypatch.setattr("mm2c_runtime.executors.cuda.stepper.DecodeGraphs", Graphs)
    monkeypatch.setattr(Graphs, "replayed", [])
    stepper = executor._stepper
    with torch.inference_mode():
        assert executor._model.capturable
        stepper.capture()
    assert not any(bool(cache.view(torch.uint8).any()) for cache in stepper.places.caches[::2])
    runs = next(iter(shapes(executor).values()))
    sizes = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20] if executor.kv.page else list(range(1, FEW + 1))
    assert {batch for batch, seq in runs if seq == 1} >= set(sizes)
    for row in range(ROWS):
        executor.step(prefill(executor, row, [row % 9]))
    for count in (9, 17):
        logits = executor.forward(decode([2] * count, [1] * count))
        assert close(logits, np.stack([expected([row % 9, 2]) for row in range(count)]))
    assert Graphs.replayed == ([12, 20] if executor.kv.page else [9])


def test_addresses_and_shapes_are_told_when_they_change(rows: TensorRTExecutor) -> None:
    rows.step(prefill(rows, 0, [1, 2]))
    contexts = [c for plan in rows._model._opened.values() for c in plan.engine.contexts]  # type: ignore[attr-defined]
    told: list[str] = []

    def watched(context: Any, name: str) -> None:
        original = getattr(context, name)

        def call(tensor: str, value: Any) -> Any:
            told.append(f"{name} {tensor}")
            return original(tensor, value)

        setattr(context, name, call)

    for context in contexts:
        watched(context, "set_tensor_address")
        watched(context, "set_input_shape")
    rows.step(decode([3], [2]))
    assert {text for text in told if "scale" in text or ("hidden" in text and "address" in text)} == set()
    assert "set_input_shape hidden.0" in told
    assert sum(text == "set_input_shape k_cache.0" for text in told) == 4
    told.clear()
    rows.step(decode([3], [3]))
    assert [text for text in told if "logits" not in text] == []
    rows.step(prefill(rows, 1, [4]))
    assert told.count("set_tensor_address k_cache.0") == 4  # the row is another one


@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (CONTEXT, 1), (CONTEXT + 1, 2), (10**9, ROWS)])
def test_a_limit_of_tokens_is_one_of_linear_rows(tmp_path: Path, tokens: int, count: int) -> None:
    executor = made(tmp_path, kv_tokens=tokens)
    assert (executor.limits.max_rows, executor.kv.rows, executor.kv_tokens) == (
        count,
        count + 1,
        count * CONTEXT,
    )
    executor.step(prefill(executor, count, [1, 2]))  # the spare row is there
    with pytest.raises(ValueError, match=f"row {count + 1}"):
        executor.step(prefill(executor, count + 1, [1]))
    executor.close()


def test_what_is_against_the_protocol_runs_nothing(executor: TensorRTExecutor) -> None:
    with pytest.raises(ValueError, match="at most"):
        executor.step(decode([1] * (ROWS + 1), [0] * (ROWS + 1)))
    with pytest.raises(ValueError, match="7 tokens of a row"):
        executor.step(prefill(executor, 0, [1] * (CHUNK + 1)))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        executor.step(decode([VOCAB], [0]))
    with pytest.raises(ValueError, match="tokens in"):
        executor.step(StepBatch(0, "decode", [RowStep(0, [1], CONTEXT, 1, True)]))
    assert all(not runs for runs in shapes(executor).values())


def test_a_plan_that_fails_fails_the_step(executor: TensorRTExecutor) -> None:
    opened = executor._model._opened.values()  # type: ignore[attr-defined]
    contexts = [context for plan in opened for context in plan.engine.contexts]
    for context in contexts:
        context.memory = None
    with pytest.raises(
        RequestError, match=r"INTERNAL: step 0 failed on cpu: .* from layer 0 failed: no device memory"
    ):
        executor.step(prefill(executor, 0, [1]))


def test_it_closes_twice_and_lets_go(tmp_path: Path) -> None:
    executor = made(tmp_path)
    executor.step(prefill(executor, 0, [1, 2]))
    executor.close()
    executor.close()
    assert not executor._model._weights  # type: ignore[attr-defined]


@settings(max_examples=12, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.lists(st.integers(0, 8), min_size=1, max_size=9), st.integers(1, 5)), max_size=8
    ),
    paged=st.booleans(),
)
def test_under_the_scheduler_every_request_says_what_it_says_alone(
    requests: list[tuple[list[int], int]], paged: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"planned{paged:d}"
    folder.mkdir(exist_ok=True)
    executor = made(folder, paged=paged, kv_tokens=4 * CONTEXT)
    scheduler = Scheduler(pool_for(executor.limits, executor.kv), prefill_chunk=CHUNK)
    sequences = [Sequence(str(n), prompt, count, GREEDY) for n, (prompt, count) in enumerate(requests)]
    for sequence in sequences:
        scheduler.add(sequence)
    while (batch := scheduler.next_batch()) is not None:
        scheduler.apply(executor.step(batch))
    for sequence in sequences:
        alone = said_alone(executor, list(sequence.prompt), len(sequence.generated))
        assert sequence.generated == alone
    executor.close()


def said_alone(executor: TensorRTExecutor, prompt: list[int], count: int) -> list[int]:
    said: list[int] = []
    for begin in range(0, len(prompt), CHUNK):
        batch = prefill(executor, 0, prompt[begin : begin + CHUNK], past=begin)
        if executor.kv.page and begin == 0:
            batch.rows[0].blocks = list(range(CONTEXT // executor.kv.page))
        token = executor.step(batch).rows[0].token
    for _ in range(count):
        assert token is not None
        said.append(token)
        token = executor.step(decode([token], [len(prompt) + len(said) - 1])).rows[0].token
    return said
