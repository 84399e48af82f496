"""The executor of a bundle with several ranks: every step goes to all of them, the first of each group answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import RequestError
from mm2c_runtime.executors.base import KvFacts
from mm2c_runtime.executors.batch import Together, together
from mm2c_runtime.manifest import Limits
from mm2c_runtime.ranks.children import COMMAND, Children
from mm2c_runtime.ranks.messages import (
    Done,
    Failed,
    Mask,
    Step,
    encode,
    for_others,
    receive,
    without_masks,
)
from mm2c_runtime.step import StepBatch, StepResult

STEP_SECONDS = 300.0  # a step of any size is over long before; a rank that hangs in a collective is not
GRACE_SECONDS = 5.0  # that the other ranks get once one has failed

log = logging.getLogger("mm2c.ranks")


class RankedExecutor:
    """One process a rank, each with its device; as ``Executor`` otherwise.

    ``devices``: ``cuda:0`` … by rank, ``groups``: attention groups of equal numbers of ranks. ``backend``: "nccl", or
    "gloo" (CPU, and several ranks on one GPU).
    ``ops`` ("module:class") replaces the kernels of every rank, for tests without a GPU;
    ``command`` replaces their program.

    ``step`` raises ConnectionError where a rank's process is gone, its device is lost, or it does not
    answer: all ranks are ended then. Whatever all ranks refuse alike fails that step alone.
    Raises BundleError where a rank cannot load.
    """

    def __init__(
        self,
        bundle: Path | str,
        *,
        devices: Sequence[str],
        groups: int = 1,
        backend: str = "nccl",
        kv_tokens: int | None = None,
        ops: str = "",
        command: Sequence[str] = COMMAND,
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        arguments = ["--bundle", str(Path(bundle).absolute()), "--backend", backend]
        arguments += ["--kv-tokens", str(kv_tokens)] if kv_tokens is not None else []
        arguments += ["--ops", ops] if ops else []
        self.forward_seconds = 0.0
        self._step_seconds = step_seconds
        self._closed = False
        self._children = Children(arguments, devices, command)
        self._groups, self._tp = groups, len(devices) // groups
        self._number = 0  # joint steps so far
        ready = self._children.ready()
        self._limits = ready[0].limits
        self._kv = replace(
            ready[0].kv,
            bytes_per_token=sum(r.kv.bytes_per_token for r in ready[: self._tp]),
            pages=min(r.kv.pages for r in ready),
            groups=groups,
        )
        self.kv_tokens = min(r.tokens for r in ready)

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def kv(self) -> KvFacts:
        return self._kv

    @property
    def processes(self) -> list[int]:
        """Process ids by rank."""
        return [child.process.pid for child in self._children.all]

    def forward(self, batch: StepBatch) -> NDArray[np.float32]:
        result = self.forwards(self._alone(batch))[0]
        assert result is not None
        return result

    def forwards(self, batches: Sequence[StepBatch | None]) -> list[NDArray[np.float32] | None]:
        results: list[NDArray[np.float32] | None] = []
        for answer in self._ask(batches, logits=True):
            if isinstance(answer, Failed):
                raise _raised(answer)
            assert answer is None or isinstance(answer, np.ndarray)
            results.append(answer)
        return results

    def step(self, batch: StepBatch) -> StepResult:
        answer = self._ask(self._alone(batch), logits=False)[0]
        if isinstance(answer, Failed):
            raise _raised(answer)
        assert isinstance(answer, StepResult)
        return answer

    def steps(self, batches: Sequence[StepBatch | None]) -> list[StepResult | None]:
        results: list[StepResult | None] = []
        for batch, answer in zip(batches, self._ask(batches, logits=False), strict=True):
            if isinstance(answer, Failed) and batch is not None:
                answer = StepResult(batch.step_id, [], failure=answer.message)
            assert answer is None or isinstance(answer, StepResult)
            results.append(answer)
        return results

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._children.end()

    def _alone(self, batch: StepBatch) -> list[StepBatch | None]:
        """The first group's batch, and none for the others."""
        return [batch, *[None] * (self._groups - 1)]

    def _ask(self, batches: Sequence[StepBatch | None], *, logits: bool) -> list[object]:
        """By group: its result, or the Failed that is its alone."""
        if self._closed:
            raise ConnectionError("the ranks were ended")
        if len(batches) != self._groups:
            raise ValueError(f"{len(batches)} batches for {self._groups} attention groups")
        self._number += 1
        agreed = together(batches, self._limits) if self._groups > 1 else None
        number = self._number if agreed is not None or batches[0] is None else batches[0].step_id
        asked = [self._messages(batch, logits, agreed) for batch in batches]
        try:
            for child in self._children.all:
                if child.rank % self._tp:
                    child.connection.send_bytes(asked[child.rank // self._tp].others)
            leaders = [child.connection for child in self._children.all[:: self._tp]]
            for leader, message in zip(leaders, asked, strict=True):
                leader.send_bytes(message.leader)
            for leader, message in zip(leaders, asked, strict=True):
                for place, mask in message.promised.items():
                    leader.send_bytes(encode(_mask(place, mask)))
            answers = self._answers(number)
        except TimeoutError as error:
            raise self._lost(self._children.gone() or str(error)) from error
        except (EOFError, OSError) as error:  # a process has ended, or is just about to
            raise self._lost(self._children.gone(wait=1.0) or str(error) or "a rank is gone") from error
        found = [self._outcome(answers[at : at + self._tp]) for at in range(0, len(answers), self._tp)]
        self.forward_seconds = max((done.seconds for done in found if isinstance(done, Done)), default=0.0)
        return [answer.result if isinstance(answer, Done) else answer for answer in found]

    def _messages(self, batch: StepBatch | None, logits: bool, agreed: Together | None) -> _Messages:
        plain, promised = (None, {}) if batch is None else without_masks(batch)
        bare = None if batch is None or self._tp == 1 else for_others(batch)
        leader = Step(plain, tuple(promised), logits, agreed=agreed, number=self._number)
        others = Step(bare, logits=logits, answers=False, agreed=agreed, number=self._number)
        return _Messages(encode(leader), encode(others), promised)

    def _answers(self, step_id: int) -> list[Done | Failed]:
        """Of all ranks, in order. TimeoutError (an OSError) where one does not answer."""
        waiting = {child.connection: child.rank for child in self._children.all}
        found: dict[int, Done | Failed] = {}
        end = time.monotonic() + self._step_seconds
        while waiting:
            heard = wait(list(waiting), max(0.0, end - time.monotonic()))
            if not heard:
                late = ", ".join(map(str, waiting.values()))
                failed = [f"rank {rank}: {a.message}" for rank, a in found.items() if isinstance(a, Failed)]
                raise TimeoutError("; ".join([f"no answer of rank {late} to step {step_id}", *failed]))
            for connection in heard:
                assert isinstance(connection, Connection)
                answer = receive(connection)
                if not isinstance(answer, (Done, Failed)) or answer.step_id != step_id:
                    raise ConnectionError(f"a rank answered step {step_id} with {answer!r:.80}")
                found[waiting.pop(connection)] = answer
                if isinstance(answer, Failed):  # the others may wait for it in a collective for ever
                    end = min(end, time.monotonic() + GRACE_SECONDS)
        return [found[rank] for rank in sorted(found)]

    def _outcome(self, answers: list[Done | Failed]) -> Done | Failed:
        """What became of a group's part of a step that all ranks have answered. Its ranks are still in step where all
        refused alike, and where the first failed alone: the others have ended their collectives, so the model ran
        on it too and its sampling failed. Raises ConnectionError where they are not."""
        failures = [answer for answer in answers if isinstance(answer, Failed)]
        if not failures:
            return answers[0]
        for failure in failures:
            if failure.lost:
                raise self._lost(failure.message)
        if len(failures) != len(answers) and failures != answers[:1]:
            some = f"{len(failures)} of {len(answers)} ranks"
            raise self._lost(f"a step failed on {some}: {failures[0].message}")
        return failures[0]

    def _lost(self, reason: str) -> ConnectionError:
        log.error("the ranks are lost: %s", reason)
        self._closed = True
        self._children.kill()
        return ConnectionError(reason)


@dataclass(frozen=True, slots=True)
class _Messages:
    """Encoded, to a group's first rank and to its others; and the masks that follow to the first."""

    leader: bytes
    others: bytes
    promised: dict[int, Future[NDArray[np.int32]]]


def _raised(failure: Failed) -> Exception:
    if failure.kind == "value":
        return ValueError(failure.message)
    return RequestError(failure.code, failure.message)


def _mask(place: int, promised: Future[NDArray[np.int32]]) -> Mask:
    """The mask once it is there. It is sent whatever became of it: rank 0 waits for it."""
    try:
        return Mask(place, promised.result())
    except RequestError as error:
        return Mask(place, None, error.code, error.message)
    except Exception as error:
        return Mask(place, None, "INTERNAL", f"{type(error).__name__}: {error}")
