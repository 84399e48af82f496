"""An executor driven as the scheduler drives it: rows and pages from its pool."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.page_pool import pool_for
from mm2c_runtime.step import RowResult, RowStep, SamplingParams, StepBatch

TOLERANCE = 0.03  # of the largest logit: bf16 activations through three layers, against f32
GREEDY = SamplingParams(temperature=0.0)


class Driver:
    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.pool = pool_for(executor.limits, executor.kv)
        self.copies: list[Any] = []
        self.released: list[int] = []

    def batch(self, kind: Any, rows: list[RowStep]) -> StepBatch:
        batch = StepBatch(0, kind, rows, self.copies, self.released)
        self.copies, self.released = [], []
        return batch

    def prefill(
        self, prompt: list[int], tokens: int, chunk: int = 48, params: SamplingParams = GREEDY, **more: Any
    ) -> tuple[int, RowResult]:
        """A new row, promoted: where it sits, and the result of its last chunk."""
        row = self.pool.allocate(tokens)
        for start in range(0, len(prompt), chunk):
            part = prompt[start : start + chunk]
            last = start + len(part) == len(prompt)
            step = RowStep(row, part, start, len(part), last, blocks=self.pool.take_blocks(row))
            if start == 0:
                step.sampling, step.history = params, list(prompt)
            if last:
                for name, value in more.items():
                    setattr(step, name, value)
            result = self.executor.step(self.batch("prefill", [step])).rows[0]
            self.pool.advance(row, len(part))
        self.copies += self.pool.promote(row)
        return self.pool.decoding - 1, result

    def decode_batch(self, tokens: list[int], indices: list[int] | None = None) -> StepBatch:
        rows = []
        for row, token in enumerate(tokens):
            index = 1 if indices is None else indices[row]
            blocks = self.pool.take_blocks(row)
            rows.append(
                RowStep(row, [token], self.pool.length(row), 1, True, token_index=index, blocks=blocks)
            )
            self.pool.advance(row, 1)
        return self.batch("decode", rows)

    def decode(self, tokens: list[int]) -> list[RowResult]:
        return list(self.executor.step(self.decode_batch(tokens)).rows)

    def release(self, row: int) -> None:
        self.released.append(row)
        copy = self.pool.release(row)
        self.copies += [copy] if copy else []


def logits_of(driver: Driver, prompt: list[int], chunk: int = 48) -> NDArray[np.float32]:
    row = driver.pool.allocate(len(prompt) + 8)
    logits = None
    for start in range(0, len(prompt), chunk):
        part = prompt[start : start + chunk]
        step = RowStep(row, part, start, len(part), False, blocks=driver.pool.take_blocks(row))
        logits = driver.executor.forward(driver.batch("prefill", [step]))
    driver.release(row)
    assert logits is not None
    return np.asarray(logits[0])


def close(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float = TOLERANCE) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def greedy(driver: Driver, prompts: list[list[int]], steps: int) -> list[list[int]]:
    """The tokens of all prompts, decoded together."""
    tokens = []
    for prompt in prompts:
        _, result = driver.prefill(prompt, len(prompt) + steps + 1)
        assert result.token is not None
        tokens.append([result.token])
    for _ in range(steps):
        results = driver.decode([row[-1] for row in tokens])
        for row, result in zip(tokens, results, strict=True):
            assert result.token is not None
            row.append(result.token)
    return tokens


class InOrder(Future):  # type: ignore[type-arg]
    """A mask that is only there when it is asked for, as the rank processes have them."""

    def __init__(self, value: Any, asked: list[int], number: int) -> None:
        super().__init__()
        self._value, self._asked, self._number = value, asked, number

    def result(self, timeout: float | None = None) -> Any:
        self._asked.append(self._number)
        if isinstance(self._value, Exception):
            raise self._value
        return self._value
