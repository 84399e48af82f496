"""A vocabulary that is cut over the ranks of an attention group: what of its logits the ranks exchange."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mm2c_runtime.executors.cuda.candidates import best_keys
from mm2c_runtime.executors.cuda.collectives import Collectives
from mm2c_runtime.executors.cuda.program import Head
from mm2c_runtime.sampling.keys import COUNT
from mm2c_runtime.sampling.penalties import penalises
from mm2c_runtime.step import RowStep, SamplingParams


class CutHead:
    """``groups``: the ranks that share a vocabulary of ``vocab`` tokens, in order; the same list on all ranks. The
    ranks of a group call the same function with the same rows."""

    def __init__(
        self, head: Head, vocab: int, collectives: Collectives, groups: Sequence[tuple[int, ...]]
    ) -> None:
        self._head, self._vocab, self._collectives = head, vocab, collectives
        collectives.make_groups(groups)
        self._group = next(group for group in groups if collectives.rank in group)

    def whole(self, logits: Tensor) -> Tensor:
        """f32[R, V] of logits f32[R, width]: every rank gets all of them."""
        return self._collectives.all_gather(logits, -1, self._group)[:, : self._vocab]

    def candidates(self, logits: Tensor) -> Tensor:
        """Keys i64[R, ranks, COUNT + 1] (``sampling.keys``) of logits f32[R, width], on every rank."""
        keys = best_keys(logits, self._head.first, self._head.tokens)
        return self._collectives.all_gather(keys[:, None], 1, self._group)


def need_whole_logits(steps: Sequence[RowStep], params: Sequence[SamplingParams | None]) -> bool:
    """Whether some row cannot be drawn from COUNT candidates: it has a mask, penalties or log probabilities, or draws
    from more of them. ``params`` by row, None for one that is not sampled."""
    return any(
        its is not None
        and (
            step.bitmask is not None
            or step.logprobs is not None
            or penalises(its)
            or (its.temperature > 0.0 and not 1 <= its.top_k <= COUNT)
        )
        for step, its in zip(steps, params, strict=True)
    )
