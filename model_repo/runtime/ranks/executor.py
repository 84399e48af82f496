"""The executor of a bundle with several ranks: every step goes to all of them, rank 0 answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import RequestError
from mm2c_runtime.executors.base import KvFacts
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

    ``devices``: ``cuda:0`` … by rank. ``backend``: "nccl", or "gloo" (CPU, and several ranks on one GPU).
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
        ready = self._children.ready()
        self._limits = ready[0].limits
        self._kv = replace(
            ready[0].kv,
            bytes_per_token=sum(r.kv.bytes_per_token for r in ready),
            pages=min(r.kv.pages for r in ready),
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
        result = self._ask(batch, logits=True)
        assert isinstance(result, np.ndarray)
        return result

    def step(self, batch: StepBatch) -> StepResult:
        result = self._ask(batch, logits=False)
        assert isinstance(result, StepResult)
        return result

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._children.end()

    def _ask(self, batch: StepBatch, *, logits: bool) -> object:
        if self._closed:
            raise ConnectionError("the ranks were ended")
        plain, promised = without_masks(batch)
        others = encode(Step(for_others(batch), logits=logits))
        try:
            for child in self._children.all[1:]:
                child.connection.send_bytes(others)
            first = self._children.all[0].connection
            first.send_bytes(encode(Step(plain, tuple(promised), logits)))
            for place, mask in promised.items():
                first.send_bytes(encode(_mask(place, mask)))
            answers = self._answers(batch.step_id)
        except TimeoutError as error:
            raise self._lost(self._children.gone() or str(error)) from error
        except (EOFError, OSError) as error:  # a process has ended, or is just about to
            raise self._lost(self._children.gone(wait=1.0) or str(error) or "a rank is gone") from error
        failures = [answer for answer in answers if isinstance(answer, Failed)]
        if failures:
            raise self._failure(failures, answers)
        done = answers[0]
        assert isinstance(done, Done)
        self.forward_seconds = done.seconds
        return done.result

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

    def _failure(self, failures: list[Failed], answers: list[Done | Failed]) -> Exception:
        """What to raise. The ranks are still in step where all refused alike, and where rank 0 alone failed:
        the others have ended their collectives, so the model ran on rank 0 too and its sampling failed."""
        first = failures[0]
        if any(failure.lost for failure in failures):
            lost = next(failure for failure in failures if failure.lost)
            return self._lost(lost.message)
        if len(failures) != len(answers) and failures != answers[:1]:
            return self._lost(f"a step failed on {len(failures)} of {len(answers)} ranks: {first.message}")
        if first.kind == "value":
            return ValueError(first.message)
        return RequestError(first.code, first.message)

    def _lost(self, reason: str) -> ConnectionError:
        log.error("the ranks are lost: %s", reason)
        self._closed = True
        self._children.kill()
        return ConnectionError(reason)


def _mask(place: int, promised: Future[NDArray[np.int32]]) -> Mask:
    """The mask once it is there. It is sent whatever became of it: rank 0 waits for it."""
    try:
        return Mask(place, promised.result())
    except RequestError as error:
        return Mask(place, None, error.code, error.message)
    except Exception as error:
        return Mask(place, None, "INTERNAL", f"{type(error).__name__}: {error}")
