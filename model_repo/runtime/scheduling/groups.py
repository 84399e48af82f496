"""The schedulers of a replica's attention groups: one queue of requests, one joint step at a time."""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList
from typing import Any

from mm2c_runtime.kv import RowPool
from mm2c_runtime.scheduling.deadlines import Deadlines
from mm2c_runtime.scheduling.scheduler import Outcome, Scheduler
from mm2c_runtime.scheduling.sequence import Sequence
from mm2c_runtime.scheduling.waiting import WaitingQueue
from mm2c_runtime.step import StepBatch, StepExecutor, StepResult


class Groups:
    """As ``Scheduler`` for several groups, whose pools are equal; one group is the common case.

    Requests wait in a common queue. Whose turn it is goes to the group with the fewest requests, of these the one
    with the most free tokens, that can admit it now. In a joint step some groups may prefill while others decode;
    since it takes as long as its slowest part, groups that have both to do prefill in the same step and decode in the
    same step, in turns.
    """

    def __init__(self, schedulers: ReadOnlyList[Scheduler]) -> None:
        if not schedulers:
            raise ValueError("there is no group")
        self.all = list(schedulers)
        self._held_up = False  # the last step prefilled although its group could have decoded

    @classmethod
    def of(cls, pools: ReadOnlyList[RowPool], *, prefill_chunk: int) -> Groups:
        """A group for each pool."""
        waiting, deadlines = WaitingQueue(), Deadlines()
        return cls(
            [Scheduler(p, prefill_chunk=prefill_chunk, waiting=waiting, deadlines=deadlines) for p in pools]
        )

    def __len__(self) -> int:
        return len(self.all)

    def add(self, sequence: Sequence) -> None:
        """As ``Scheduler.add``."""
        self.all[0].add(sequence)  # the queue is the same for all, and so are the sizes of the pools

    def remove(self, sequence: Sequence) -> bool:
        """As ``Scheduler.remove``."""
        return any(scheduler.remove(sequence) for scheduler in self.all)

    def expired(self, now: float) -> list[Sequence]:
        """As ``Scheduler.expired``."""
        return self.all[0].expired(now)

    def report(self) -> dict[str, Any]:
        """running, waiting, and groups: [{running, kv_tokens_free}]."""
        groups = [{"running": s.running, "kv_tokens_free": s.pool.free_tokens} for s in self.all]
        return {
            "running": sum(group["running"] for group in groups),
            "waiting": self.all[0].waiting,
            "groups": groups,
        }

    def next_batches(self) -> list[StepBatch | None]:
        """The next step, by group; None for each that has nothing to do."""
        batches: list[StepBatch | None] = [None] * len(self.all)
        may_prefill, self._held_up = not self._held_up, False
        order = sorted(range(len(self.all)), key=self._load) if len(self.all) > 1 else (0,)
        for group in order:
            scheduler = self.all[group]
            batch = batches[group] = scheduler.next_batch(may_prefill=may_prefill)
            self._held_up |= batch is not None and batch.kind == "prefill" and scheduler.decoding
        return batches

    def _load(self, group: int) -> tuple[int, int]:
        scheduler = self.all[group]
        return scheduler.running, -scheduler.pool.free_tokens

    def run(self, executor: StepExecutor, batches: ReadOnlyList[StepBatch | None]) -> list[StepResult | None]:
        """Their results, by group. Raises what the executor raises."""
        if len(batches) > 1:
            return executor.steps(batches)
        (batch,) = batches
        return [None if batch is None else executor.step(batch)]

    def apply(self, results: ReadOnlyList[StepResult | None]) -> list[Outcome]:
        """Takes the results of the step in flight, by group; one with a ``failure`` failed in that group."""
        outcomes = []
        for scheduler, result in zip(self.all, results, strict=True):
            if result is None:
                outcomes += self._missed(scheduler)
            elif result.failure:
                outcomes += scheduler.fail(f"the step failed: {result.failure}")
            else:
                outcomes += scheduler.apply(result)
        return outcomes

    def _missed(self, scheduler: Scheduler) -> list[Outcome]:
        return scheduler.fail("the step gave no result for this group") if scheduler.in_flight else []

    def fail(self, message: str) -> list[Outcome]:
        """The step in flight failed as a whole, in every group that took part."""
        return [outcome for s in self.all if s.in_flight for outcome in s.fail(message)]
