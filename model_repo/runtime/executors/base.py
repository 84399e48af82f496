"""What the engine needs of an executor, whatever runs the rank programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.executors.batch import Together
from mm2c_runtime.step import StepBatch, StepResult

if TYPE_CHECKING:  # not at run time: the GPU's checks run where pydantic is not
    from mm2c_runtime.manifest import Limits


@dataclass(frozen=True, slots=True)
class KvFacts:
    """The KV cache of an attention group, all its ranks together: rows of up to ``context`` tokens,
    ``bytes_per_token`` each. There are ``groups`` of the same size.

    ``rows`` counts physical rows. It is one more than ``Limits.max_rows``: the spare row lets
    ``mm2c_runtime.kv.RowPool`` exchange two rows by copies. ``page`` 0: the rows are linear, and memory is
    committed as it is written. Otherwise rows are made of the ``pages`` pages of ``page`` tokens, which are there
    from the start.
    """

    rows: int
    context: int
    bytes_per_token: int
    page: int = 0
    pages: int = 0
    groups: int = 1


class Executor(Protocol):
    """Runs steps one after another; not thread-safe. Contract violations by the caller raise ValueError."""

    @property
    def limits(self) -> Limits:
        """Sizes that a batch must keep to."""

    @property
    def kv(self) -> KvFacts: ...

    def forward(self, batch: StepBatch) -> NDArray[np.float32]:
        """Carry out the batch's copies and run the model: logits f32[len(rows), vocab] of each row's last
        token, or f32[len(rows), width, vocab] where the bundle was built with all-token logits (width is the
        largest ``new_len``; entries past a row's ``new_len`` are unspecified). The caller owns the array."""

    def step(self, batch: StepBatch) -> StepResult:
        """``forward``, then a token for every row with ``sample``. What concerns one row only (non-finite
        logits, a mask that allows nothing) is that row's ``error``. A failure of the model itself raises
        RequestError("INTERNAL") and leaves the rows as undefined as if they had been released."""

    def forwards(self, batches: Sequence[StepBatch | None]) -> list[NDArray[np.float32] | None]:
        """``forward`` of all attention groups together, by group; None for one without a batch."""

    def steps(self, batches: Sequence[StepBatch | None]) -> list[StepResult | None]:
        """``step`` of all attention groups together, by group. What concerns one group only (a batch against the
        protocol, a fault of its sampler) is that result's ``failure``. ``step`` and ``forward`` are for executors
        of one group, and of the first where there are more."""

    def close(self) -> None:
        """Free weights and cache. Safe to call twice; nothing else may be called afterwards."""


class RankExecutor(Executor, Protocol):
    """What a rank process runs. The results of ranks that do not answer for their group are not used; the joint steps
    are those of several groups."""

    rank: int
    kv_tokens: int
    forward_seconds: float

    def joint_forward(self, batch: StepBatch | None, agreed: Together) -> NDArray[np.float32] | None: ...
    def joint_step(self, batch: StepBatch | None, agreed: Together) -> StepResult | None: ...
