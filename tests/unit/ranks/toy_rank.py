"""A rank process without a model: it answers each step as its ``--ops`` text says."""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import Namespace

import numpy as np

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.executors.base import KvFacts
from mm2c_runtime.executors.batch import Together
from mm2c_runtime.manifest import Limits
from mm2c_runtime.ranks.worker import parse, work
from mm2c_runtime.step import RowResult, StepBatch, StepResult, TokenLogprobs


class ToyRank:
    """Tokens are 100 · row + the number of allowed bits of the row's mask."""

    def __init__(self, rank: int, behaviour: str) -> None:
        self.rank, self.behaviour = rank, behaviour
        self.kv_tokens = 1000 - rank
        self.forward_seconds = 0.25
        self.limits = Limits(context=64, max_rows=4, prefill_chunk=8)
        self.kv = KvFacts(5, 64, 16)

    def forward(self, batch: StepBatch) -> np.ndarray:
        return np.full((len(batch.rows), 3), self.rank, np.float32)

    def step(self, batch: StepBatch) -> StepResult:
        if self.rank and any(
            row.history or (row.bitmask is not None and np.size(row.bitmask)) for row in batch.rows
        ):
            raise RuntimeError("a mask or a history was sent to a rank that does not sample")
        return self._step(batch)

    def _step(self, batch: StepBatch) -> StepResult:
        what, _, who = self.behaviour.partition("@")
        if batch.step_id > 1 and (not who or str(self.rank) in who.split(",")):
            self._misbehave(what)
        rows = []
        for row in batch.rows:
            mask = row.bitmask.result() if hasattr(row.bitmask, "result") else row.bitmask
            bits = 0 if mask is None else sum(word.bit_count() for word in mask.view(np.uint32).tolist())
            rows.append(RowResult(row.row, token=100 * row.row + bits))
        return StepResult(batch.step_id, rows)

    def joint_forward(self, batch: StepBatch | None, agreed: Together) -> np.ndarray | None:
        return None if batch is None else self.forward(batch)

    def joint_step(self, batch: StepBatch | None, agreed: Together) -> StepResult | None:
        """Of a rank that may be the first of its group; the log probability of a token is what the groups agreed on."""
        if batch is None:
            return None
        result = self._step(batch)
        for row in result.rows:
            row.logprobs = TokenLogprobs(agreed.tokens + 0.5 * agreed.decode, [])
        return result

    def close(self) -> None:
        print(f"toy rank {self.rank} closed", file=sys.stderr)

    def _misbehave(self, what: str) -> None:
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            time.sleep(60)
        if what == "value":
            raise ValueError("a bad batch")
        if what == "request":
            raise RequestError("RESOURCE_EXHAUSTED", "no room")
        if what == "lost":
            raise ConnectionError("the device is lost")


def load(options: Namespace) -> ToyRank:
    if options.ops == "refuse" and options.rank == 1:
        raise BundleError("it does not fit", where="rank 1", remedy="a larger one")
    if options.ops == "exit" and options.rank == 1:
        sys.exit(3)
    return ToyRank(options.rank, options.ops)


if __name__ == "__main__":
    sys.exit(work(parse(None), load))
