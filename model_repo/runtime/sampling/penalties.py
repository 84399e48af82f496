"""Penalties on ids that occurred: in prompt and answer (repetition), in the answer (presence, frequency)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.step import SamplingParams

_F32 = np.finfo(np.float32)


class PenaltyHistory:
    """The ids of one row so far: which occurred at all, and how often the model generated each."""

    def __init__(self) -> None:
        self._slot: dict[int, int] = {}
        self._ids = np.empty(64, np.int64)
        self._generated = np.zeros(64, np.int32)

    def add(self, tokens: Sequence[int], generated: Sequence[int]) -> None:
        """``tokens`` are the new ids of prompt and answer; ``generated`` those that the model made."""
        for token in tokens:
            self._slot_of(token)
        for token in generated:
            slot = self._slot_of(token)
            self._generated[slot] += 1

    def _slot_of(self, token: int) -> int:
        slot = self._slot.setdefault(token, len(self._slot))
        if slot == self._ids.size:
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._generated = np.concatenate([self._generated, np.zeros_like(self._generated)])
        self._ids[slot] = token
        return slot

    def copy(self) -> PenaltyHistory:
        other = PenaltyHistory()
        other._slot = dict(self._slot)
        other._ids, other._generated = self._ids.copy(), self._generated.copy()
        return other

    def apply(self, logits: NDArray[np.float32], params: SamplingParams) -> None:
        """Change f32[V] in place. First repetition, as transformers: a positive logit is divided by the
        penalty, a negative one multiplied. Then, as OpenAI: minus frequency x count, minus presence."""
        ids = self._ids[: len(self._slot)]
        values = logits[ids]
        if params.repetition_penalty != 1.0:
            values = _repeated(values, params.repetition_penalty)
        if params.frequency_penalty or params.presence_penalty:
            counts = self._generated[: len(self._slot)].astype(np.float32)
            values -= np.float32(params.frequency_penalty) * counts
            values -= np.float32(params.presence_penalty) * (counts > 0)
        logits[ids] = values


def _repeated(values: NDArray[np.float32], penalty: float) -> NDArray[np.float32]:
    """In f32 as transformers; a penalty so extreme that it leaves f32 gives the largest f32, not inf or NaN."""
    with np.errstate(over="ignore"):
        if _F32.tiny <= penalty <= _F32.max:
            factor = np.float32(penalty)
            changed = np.where(values < 0, values * factor, values / factor)
        else:
            wide = values.astype(np.float64)
            changed = np.where(wide < 0, wide * penalty, wide / penalty)
    return np.asarray(np.clip(changed, _F32.min, _F32.max), np.float32)


def penalises(params: SamplingParams) -> bool:
    """Whether any penalty is on, so that a row's history must be kept."""
    return (
        params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    )
