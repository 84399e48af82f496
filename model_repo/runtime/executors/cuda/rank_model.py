"""What a step runs: a rank's model on its device, and what of it its executor must know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from mm2c_runtime.executors.cuda.ops import Ops
from mm2c_runtime.executors.cuda.program import Head, Kv


class RankFacts(Protocol):
    """Sizes of a rank's model. ``kv.page`` 0: the cache is linear rows of ``context`` tokens. ``columns``: of the
    logits; ``head``: of which part of the vocabulary they are, None for all of it. ``together``: whether attention
    groups exchange their tokens. ``most_pages``: that the model can address, None where there is no limit."""

    @property
    def kv(self) -> Kv: ...
    @property
    def vocab(self) -> int: ...
    @property
    def logits(self) -> Literal["last", "all"]: ...
    @property
    def context(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    @property
    def prefill_chunk(self) -> int: ...
    @property
    def head(self) -> Head | None: ...
    @property
    def columns(self) -> int: ...
    @property
    def together(self) -> bool: ...
    @property
    def most_pages(self) -> int | None: ...


class StepModel(Protocol):
    """``capturable``: whether ``run`` may be captured into a CUDA graph; known once the steps have run."""

    @property
    def capturable(self) -> bool: ...

    def most_rows(self, width: int) -> int:
        """Rows of ``width`` tokens that one run takes; 0 where it takes no row so long."""

    def run(
        self,
        input_ids: Tensor,
        past_len: Tensor,
        new_len: Tensor,
        block_table: Tensor,
        caches: Sequence[Tensor],
        step_tokens: int = 0,
    ) -> Tensor:
        """Enqueue a step on the current stream: input_ids i64[B, S], past_len and new_len i32[B]. ``caches``: k and v
        of each layer in turn, written in place; of pages all of them, with block_table i32[B, M]; of linear rows
        those of the step, and ``block_table`` means nothing. ``step_tokens``: B · S of the attention group that has
        most of them, where groups exchange tokens. Logits f32[B, columns] or [B, S, columns]."""

    def started(self) -> None:
        """The first steps have run, and were captured where they could be."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LoadedRank:
    """``program``: the model's facts. ``weights``: bytes of its tensors on the device, and of memory that it keeps
    for its steps. ``ops``: where sampling on the device is, if it is."""

    program: RankFacts
    model: StepModel
    ops: Ops
    weights: int
