"""The sampler of one rank: from logits and per-row state to tokens.

For each row, in this order: penalties (repetition, frequency, presence), grammar bitmask, then greedy choice
or temperature, top-k, top-p, min-p and a draw. Log probabilities are those of the model's raw logits.
A row's result depends on its own logits, parameters, history and token index only, never on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import RequestError
from mm2c_runtime.sampling.bitmask import bounds_like, forbid
from mm2c_runtime.sampling.draw import draw
from mm2c_runtime.sampling.greedy import greedy
from mm2c_runtime.sampling.keys import merged
from mm2c_runtime.sampling.logprobs import token_logprobs
from mm2c_runtime.sampling.penalties import PenaltyHistory, penalises
from mm2c_runtime.sampling.uniform import TokenUniform
from mm2c_runtime.step import Bitmask, RowResult, RowStep, SamplingParams

NON_FINITE = "the model's logits are not finite"
NOTHING_ALLOWED = "the grammar allows no token here"


@dataclass(slots=True)
class RowState:
    params: SamplingParams
    history: PenaltyHistory | None  # kept only while a penalty is on


class Sampler:
    """Keeps the state of every row; not thread-safe."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab
        self._rows: dict[int, RowState] = {}
        self._uniform = TokenUniform()
        self._logits = np.empty(vocab, np.float32)
        self._weights = np.empty(vocab, np.float64)
        self._bounds: NDArray[np.float32] | None = None  # of masks, once there are any

    def observe(self, step: RowStep) -> None:
        """Take in what a step says about its row: parameters (they start the row anew) and history. To be
        called for every row of a step, sampled or not."""
        if step.sampling is not None:
            history = PenaltyHistory() if penalises(step.sampling) else None
            self._rows[step.row] = RowState(step.sampling, history)
        state = self._rows.get(step.row)
        if state is not None and state.history is not None and (step.history or step.generated):
            state.history.add(step.history, step.generated)

    def copy(self, source: int, target: int) -> None:
        """Give row ``target`` the state of row ``source``."""
        state = self._rows.get(source)
        if state is None:
            self._rows.pop(target, None)
        else:
            history = None if state.history is None else state.history.copy()
            self._rows[target] = RowState(state.params, history)

    def release(self, row: int) -> None:
        """Drop a row's state; a row without state is fine."""
        self._rows.pop(row, None)

    def sample(self, logits: NDArray[np.float32], steps: Sequence[RowStep]) -> list[RowResult]:
        """Results of ``steps`` whose logits are the rows of ``logits`` f32[len(steps), V] (not changed).

        Rows without ``sample`` get no token. Raises ValueError for a sampled row that never had parameters.
        """
        if not steps:
            return []
        finite = np.isfinite(logits.max(axis=1)) & np.isfinite(logits.min(axis=1))
        best = greedy(logits)
        results = []
        for index, step in enumerate(steps):
            if not step.sample:
                error = None if finite[index] else NON_FINITE
                results.append(RowResult(step.row, error=error))
            elif not finite[index]:
                results.append(RowResult(step.row, error=NON_FINITE))
            else:
                results.append(self._sample_row(logits[index], step, int(best[index])))
        return results

    def sample_candidates(
        self, keys: NDArray[np.int64], steps: Sequence[RowStep], *, choose: bool
    ) -> list[RowResult]:
        """As ``sample``, from the best tokens of each rank: keys i64[len(steps), ranks, COUNT + 1]. No row has a mask,
        penalties or log probabilities, or draws from more than COUNT tokens. ``choose`` False: only whether rows are
        finite is told."""
        results = []
        for index, step in enumerate(steps):
            logits, ids, finite = merged(keys[index])
            if not finite:
                results.append(RowResult(step.row, error=NON_FINITE))
            elif not (step.sample and choose):
                results.append(RowResult(step.row))
            else:
                place = self._chosen(logits, int(greedy(logits)), self._state(step.row).params, step)
                results.append(RowResult(step.row, token=int(ids[place])))
        return results

    def parameters(self, row: int) -> SamplingParams:
        """Of a row that is to be sampled; ValueError where it never had any."""
        return self._state(row).params

    def _state(self, row: int) -> RowState:
        state = self._rows.get(row)
        if state is None:
            raise ValueError(f"row {row} is sampled but never had sampling parameters")
        return state

    def _sample_row(self, raw: NDArray[np.float32], step: RowStep, best: int) -> RowResult:
        state = self._state(step.row)
        params, logits = state.params, raw
        try:
            bitmask = _there(step.bitmask)
        except RequestError as error:
            return RowResult(step.row, error=error.message, code=error.code)
        if state.history is not None or bitmask is not None:
            logits = self._logits
            if state.history is not None:
                np.copyto(logits, raw)
                state.history.apply(logits, params)
            if bitmask is not None:
                if self._bounds is None:
                    self._bounds = bounds_like(self.vocab)
                forbid(logits, bitmask, raw if state.history is None else logits, self._bounds)
            best = int(greedy(logits))
            if logits[best] == -np.inf:
                return RowResult(step.row, error=NOTHING_ALLOWED)
        token = self._chosen(logits, best, params, step)
        logprobs = None if step.logprobs is None else token_logprobs(raw, token, step.logprobs)
        return RowResult(step.row, token=token, logprobs=logprobs)

    def _chosen(self, logits: NDArray[np.float32], best: int, params: SamplingParams, step: RowStep) -> int:
        """The place of the token in ``logits``, whose highest is ``best``."""
        if params.temperature <= 0.0:
            return best
        uniform = self._uniform(params.seed, step.token_index)
        return draw(logits, params, uniform, self._weights[: logits.size])


def _there(bitmask: Bitmask | None) -> NDArray[np.int32] | None:
    """The mask itself, waited for. Raises RequestError where it could not be computed."""
    return bitmask.result() if isinstance(bitmask, Future) else bitmask
