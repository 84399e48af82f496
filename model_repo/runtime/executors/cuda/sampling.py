"""Sampling on the device where it can be exact there; the other rows' logits go to the host's sampler.

On the device: greedy rows and rows with 1 <= top_k <= 64, masked or not. On the host: penalties, log probabilities,
and draws from more candidates than that. Both give the same token for the same logits, but that the device has
temperature, top_p and min_p in f32.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mm2c_runtime.errors import RequestError
from mm2c_runtime.executors.cuda.ops import Ops
from mm2c_runtime.sampling.penalties import penalises
from mm2c_runtime.sampling.sampler import NON_FINITE, NOTHING_ALLOWED, Sampler
from mm2c_runtime.sampling.uniform import TokenUniform
from mm2c_runtime.step import RowResult, RowStep, SamplingParams

MOST_CANDIDATES = 64  # top_k that the kernel keeps
_GREEDY = SamplingParams(temperature=0.0)
_OK, _NOT_FINITE, _NOTHING = range(3)  # status of a row


@dataclass(frozen=True)
class _SampleCall:
    greedy: bool
    use_mask: bool
    name: str = "sample"
    op: str = "M2Sample"
    attributes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.attributes.update(greedy=int(self.greedy), use_mask=int(self.use_mask))


_CALLS = {(g, m): _SampleCall(g, m, f"sample.{g:d}{m:d}") for g in (False, True) for m in (False, True)}


class DeviceSampler:
    """Draws for the rows of a step; the state of rows is the host sampler's."""

    def __init__(self, sampler: Sampler, ops: Ops, rows: int, device: torch.device) -> None:
        self._sampler, self._ops, self._device = sampler, ops, device
        self._here = bool(getattr(ops, "samples", False))
        self._uniform = TokenUniform()
        self._words = -(-sampler.vocab // 32)
        pinned = device.type == "cuda"
        self._inputs = _Pinned(rows, self._words, device)
        self._outputs = torch.zeros((2, rows), dtype=torch.int32, pin_memory=pinned)
        self._host_logits = torch.empty((rows, sampler.vocab), dtype=torch.float32, pin_memory=pinned)

    def sample(self, logits: Tensor, steps: Sequence[RowStep]) -> list[RowResult]:
        """Results of ``steps``, whose logits are the rows of ``logits`` f32[len(steps), V]. Waits for the device."""
        steps, failed = _with_masks(steps)
        count = len(steps)
        if not self._here:
            there = self._host_logits[:count]
            there.copy_(logits, non_blocking=True)
            self._wait()
            return _merged(self._sampler.sample(there.numpy(), steps), failed)
        params = [self._sampler.parameters(step.row) if step.sample else _GREEDY for step in steps]
        drawn = [_on_device(step, its) for step, its in zip(steps, params, strict=True)]
        tokens, status = self._launch(logits, steps, params, drawn)
        others = [place for place in range(count) if not drawn[place]]
        for slot, place in enumerate(others):
            self._host_logits[slot].copy_(logits[place], non_blocking=True)
        self._wait()
        results: list[RowResult | None] = [None] * count
        for place in range(count):
            if drawn[place]:
                results[place] = self._result(steps[place], int(tokens[place]), int(status[place]))
        if others:
            drawn_here = self._sampler.sample(
                self._host_logits[: len(others)].numpy(), [steps[place] for place in others]
            )
            for place, result in zip(others, drawn_here, strict=True):
                results[place] = result
        return _merged([result for result in results if result is not None], failed)

    def _launch(
        self,
        logits: Tensor,
        steps: Sequence[RowStep],
        params: Sequence[SamplingParams],
        drawn: Sequence[bool],
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Enqueue M2Sample for all rows, and the copies of what it says, to be read once the device is waited for.
        The results of rows that are drawn on the host are not used."""
        count = len(steps)
        given = self._inputs
        for place, (step, its, here) in enumerate(zip(steps, params, drawn, strict=True)):
            if not here or its.temperature <= 0.0:
                its = _GREEDY
            given.row(place, its, 0.0 if its is _GREEDY else self._uniform(its.seed, step.token_index))
        greedy = all(not here or its.temperature <= 0.0 for its, here in zip(params, drawn, strict=True))
        masks = {p: s.bitmask for p, s in enumerate(steps) if drawn[p] and s.sample and s.bitmask is not None}
        found = self._ops.run(_CALLS[greedy, bool(masks)], [logits, *given.upload(count, masks)])
        for column, tensor in enumerate(found):
            self._outputs[column, :count].copy_(tensor, non_blocking=True)
        both = self._outputs.numpy()
        return both[0, :count], both[1, :count]

    def _result(self, step: RowStep, token: int, status: int) -> RowResult:
        if status == _NOT_FINITE:
            return RowResult(step.row, error=NON_FINITE)
        if not step.sample:
            return RowResult(step.row)
        if status == _NOTHING:
            return RowResult(step.row, error=NOTHING_ALLOWED)
        if (
            status != _OK or not 0 <= token < self._sampler.vocab
        ):  # a fault that shall not be taken for an answer
            return RowResult(step.row, error=f"the device sampled token {token} with status {status}")
        return RowResult(step.row, token=token)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


class _Pinned:
    """The kernel's inputs by row: uniform i64, then temperature, top_p, min_p f32 and top_k i32, in one copy; and
    the masks, which are copied where there are any."""

    def __init__(self, rows: int, words: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._rows = rows + -rows % 4  # so that every column begins at 16 bytes
        self._host = torch.zeros(24 * self._rows, dtype=torch.uint8, pin_memory=pinned)
        self._device = torch.zeros(24 * self._rows, dtype=torch.uint8, device=device)
        self._numpy = [part.numpy() for part in self._parts(self._host)]
        self._masks = torch.zeros((rows, words), dtype=torch.int32, pin_memory=pinned)
        self._mask_rows = self._masks.numpy()
        self._device_masks = torch.zeros((rows, words), dtype=torch.int32, device=device)

    def _parts(self, raw: Tensor) -> list[Tensor]:
        """uniform, temperature, top_p, min_p, top_k."""
        rows = self._rows
        parts = [raw[: 8 * rows].view(torch.int64)]
        for number, dtype in enumerate((torch.float32, torch.float32, torch.float32, torch.int32)):
            begin = (8 + 4 * number) * rows
            parts.append(raw[begin : begin + 4 * rows].view(dtype))
        return parts

    def row(self, place: int, params: SamplingParams, uniform: float) -> None:
        values = (
            np.float64(uniform).view(np.int64),
            params.temperature,
            params.top_p,
            params.min_p,
            params.top_k,
        )
        for column, value in zip(self._numpy, values, strict=True):
            column[place] = value

    def upload(self, count: int, masks: dict[int, Any]) -> list[Tensor]:
        """mask, temperature, top_k, top_p, min_p, uniform of ``count`` rows, as the kernel takes them."""
        self._device.copy_(self._host, non_blocking=True)
        if masks:
            self._mask_rows[:count] = -1
            for place, mask in masks.items():
                self._mask_rows[place] = mask
            self._device_masks[:count].copy_(self._masks[:count], non_blocking=True)
        uniform, temperature, top_p, min_p, top_k = (part[:count] for part in self._parts(self._device))
        return [self._device_masks[:count], temperature, top_k, top_p, min_p, uniform]


def _on_device(step: RowStep, params: SamplingParams) -> bool:
    if penalises(params) or (step.sample and step.logprobs is not None):
        return False
    return params.temperature <= 0.0 or 1 <= params.top_k <= MOST_CANDIDATES


def _with_masks(steps: Sequence[RowStep]) -> tuple[list[RowStep], dict[int, RequestError]]:
    """The steps with their masks themselves, waited for in order; and, by row, why there is none."""
    found, failed = [], {}
    for step in steps:
        if isinstance(step.bitmask, Future) and step.sample:
            mask = None
            try:
                mask = step.bitmask.result()
            except RequestError as error:
                failed[step.row] = error
            step = replace(step, bitmask=mask)
        found.append(step)
    return found, failed


def _merged(results: list[RowResult], failed: dict[int, RequestError]) -> list[RowResult]:
    """A row that is not finite says so; one without a mask says why."""
    for index, result in enumerate(results):
        error = failed.get(result.row)
        if error is not None and result.error is None:
            results[index] = RowResult(result.row, error=error.message, code=error.code)
    return results
