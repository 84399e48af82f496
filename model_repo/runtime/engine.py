"""The engine: one thread that turns requests into steps and steps into events."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from mm2c_runtime.answer import Answer, Event, FinishReason
from mm2c_runtime.detokenizer import TokenBytes
from mm2c_runtime.engine_stats import Statistics
from mm2c_runtime.errors import Code, RequestError
from mm2c_runtime.generation import Preparer
from mm2c_runtime.option_values import invalid
from mm2c_runtime.requests import GenerateRequest
from mm2c_runtime.scheduling.admission import new_sequence
from mm2c_runtime.scheduling.groups import Groups
from mm2c_runtime.scheduling.scheduler import Outcome, Scheduler
from mm2c_runtime.scheduling.sequence import Sequence
from mm2c_runtime.step import StepExecutor

MAX_REQUESTS = 4096  # running and waiting together
MASK_WORKERS = 2  # threads for the masks of grammars, which are computed while the model runs
OnEvent = Callable[[Event], None]
log = logging.getLogger("mm2c.engine")


@dataclass(slots=True)
class _Running:
    """A request inside the engine thread."""

    sequence: Sequence
    answer: Answer
    on_event: OnEvent


class Engine:
    """``scheduler``: of the one attention group, or of all that the executor's replica has.

    ``submit`` and ``cancel`` may be called from any thread; events of a request come from the engine
    thread, in order, ending with exactly one ``finish`` or ``error``. ``on_event`` must not block.

    Events are dicts: started(id, num_input_tokens, seed) · delta(id, text, reasoning, tool_calls, token_ids,
    logprobs) · finish(id, finish_reason, num_input_tokens, num_output_tokens, incomplete, seed) · error(id,
    code, message).
    """

    def __init__(
        self,
        executor: StepExecutor,
        scheduler: Scheduler | Groups,
        preparer: Preparer,
        token_bytes: TokenBytes,
    ) -> None:
        self.preparer = preparer
        self._executor, self._token_bytes = executor, token_bytes
        self._groups = scheduler if isinstance(scheduler, Groups) else Groups([scheduler])
        self._running: dict[str, _Running] = {}  # engine thread only
        self._statistics = Statistics()
        self._commands: deque[tuple[str, Any]] = deque()
        self._ids: set[str] = set()  # submitted and not ended
        self._changed = threading.Condition()
        self._refusal: str | None = None  # why nothing more is taken
        self._stopping = self._closed = False
        self._masks = ThreadPoolExecutor(MASK_WORKERS, thread_name_prefix="mm2c-mask")
        self._thread = threading.Thread(target=self._run, name="mm2c-engine", daemon=True)
        self._thread.start()

    # Called from any thread

    def submit(
        self,
        request_id: str,
        request: GenerateRequest,
        on_event: OnEvent,
        *,
        submitted: float | None = None,
    ) -> None:
        """Renders and tokenises in the calling thread, then queues. ``submitted``: when, on the monotonic
        clock, the request's timeout began; default now. Raises RequestError; no event follows a raise."""
        submitted = time.monotonic() if submitted is None else submitted
        timeout = request.options.timeout
        if timeout is not None and time.monotonic() >= submitted + timeout:
            raise RequestError("CANCELLED", f"the timeout of {timeout:g} s ran out before it was prepared")
        generation = self.preparer.prepare(request)
        vocab = self.preparer.vocab
        sequence = new_sequence(request_id, generation, vocab, self._masks.submit, now=submitted)
        answer = Answer(request_id, generation, self._token_bytes)
        with self._changed:
            if self._refusal is not None:
                raise RequestError("UNAVAILABLE", self._refusal)
            if request_id in self._ids:
                raise invalid(f"a request with id {request_id} is already running")
            if len(self._ids) >= MAX_REQUESTS:
                raise RequestError("RESOURCE_EXHAUSTED", f"{MAX_REQUESTS} requests are waiting; try later")
            self._ids.add(request_id)
            self._commands.append(("submit", _Running(sequence, answer, on_event)))
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """Ends the request with finish_reason "cancelled" before the next step; unknown ids are ignored."""
        with self._changed:
            if request_id in self._ids:
                self._commands.append(("cancel", request_id))
                self._changed.notify()

    def stats(self) -> dict[str, Any]:
        """Counters since start, and who is here now; see ``Statistics.report`` and ``Groups.report``."""
        return {**self._statistics.report(), **self._groups.report()}

    @property
    def alive(self) -> bool:
        """False once the executor is lost or the engine closed."""
        return self._refusal is None

    @property
    def in_flight(self) -> int:
        return len(self._ids)

    def drain(self, timeout: float, reason: str = "the engine is shutting down") -> bool:
        """Refuses new requests and waits for the present ones; True where all have ended."""
        with self._changed:
            self._refusal = self._refusal or reason
            return self._changed.wait_for(lambda: not self._ids, timeout)

    def close(self) -> None:
        """Fails what is in flight with UNAVAILABLE, ends the thread, closes the executor. Safe to repeat."""
        with self._changed:
            self._refusal = self._refusal or "the engine is closed"
            self._stopping = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        with self._changed:
            closed, self._closed = self._closed, True
        if not closed:
            self._masks.shutdown(wait=False, cancel_futures=True)
            self._executor.close()

    # The engine thread

    def _run(self) -> None:
        try:
            while self._wait():
                self._expire()
                self._step()
        except BaseException:  # SystemExit too: whatever it was, the clients must hear of it
            log.exception("the engine loop failed")
            self._refuse("the engine has failed; see its log")
        self._fail_all(self._refusal or "the engine is closed")

    def _wait(self) -> bool:
        """Carries out the commands, sleeping while there is nothing to do. False: stop."""
        while True:
            with self._changed:
                while not (self._commands or self._running or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return False
                commands, self._commands = self._commands, deque()
            for command, value in commands:
                if command == "submit":
                    self._guard(value, self._start)
                elif (running := self._running.get(value)) is not None:
                    self._guard(running, lambda running: self._finish(running, "cancelled"))
            if self._running:
                return True

    def _start(self, running: _Running) -> None:
        sequence = running.sequence
        tokens, seed = len(sequence.prompt), sequence.sampling.seed
        self._running[sequence.id] = running
        log.info("request %s: %d prompt tokens, seed %d", sequence.id, tokens, seed)
        self._groups.add(sequence)
        self._send(running, {"type": "started", "id": sequence.id, "num_input_tokens": tokens, "seed": seed})

    def _expire(self) -> None:
        for sequence in self._groups.expired(time.monotonic()):
            running = self._running[sequence.id]
            limit, done = running.answer.generation.timeout, running.answer.num_tokens
            self._error(running, "CANCELLED", f"the timeout of {limit:g} s ran out after {done} tokens")

    def _step(self) -> None:
        began = time.perf_counter()
        batches = self._groups.next_batches()
        planned = time.perf_counter()
        some = [batch for batch in batches if batch is not None]
        if not some:
            return
        try:
            results = self._groups.run(self._executor, batches)
        except (ConnectionError, EOFError) as error:
            log.exception("the executor is gone")
            self._groups.fail("the executor is gone")
            self._refuse(f"the executor is gone: {error or type(error).__name__}")
            self._fail_all(self._refusal or "")
            return
        except Exception as error:
            for batch in some:
                log.exception("step %d (%s, %d rows) failed", batch.step_id, batch.kind, len(batch.rows))
            reason = error.message if isinstance(error, RequestError) else f"{type(error).__name__}: {error}"
            outcomes = self._groups.fail(f"the step failed: {reason}")
            ran = time.perf_counter()
        else:
            ran = time.perf_counter()
            outcomes = self._groups.apply(results)
        applied = time.perf_counter()
        for outcome in outcomes:
            self._guard(self._running[outcome.sequence.id], partial(self._take, outcome))
        self._statistics.add(
            some,
            forward=getattr(self._executor, "forward_seconds", None),
            execute=ran - planned,
            schedule=(planned - began) + (applied - ran),
            detokenise=time.perf_counter() - applied,
        )

    def _guard(self, running: _Running, act: Callable[[_Running], None]) -> None:
        """What goes wrong with the answer of one request ends that request alone."""
        try:
            act(running)
        except Exception as error:
            log.exception("request %s failed", running.sequence.id)
            if running.sequence.id in self._running:
                self._error(running, "INTERNAL", f"{type(error).__name__}: {error}")

    def _take(self, outcome: Outcome, running: _Running) -> None:
        if outcome.token is None:
            self._error(running, outcome.code, outcome.error or "the step failed")
            return
        answer = running.answer
        answer.add(outcome.token, outcome.logprobs, silent=outcome.ending == "stop")
        if outcome.ending is not None or answer.stopped:
            self._finish(running, "length" if outcome.ending == "length" and not answer.stopped else "stop")
        elif answer.generation.stream and (delta := answer.take()) is not None:
            self._send(running, delta)

    def _finish(self, running: _Running, reason: FinishReason) -> None:
        answer, sequence = running.answer, running.sequence
        reason = answer.finish(reason)
        self._forget(running)
        if (delta := answer.flush()) is not None:
            self._send(running, delta)
        self._send(
            running,
            {
                "type": "finish",
                "id": sequence.id,
                "finish_reason": reason,
                "num_input_tokens": len(sequence.prompt),
                "num_output_tokens": answer.num_tokens,
                "incomplete": answer.incomplete,
                "seed": sequence.sampling.seed,
            },
        )

    def _error(self, running: _Running, code: Code, message: str) -> None:
        event = {"type": "error", "id": running.sequence.id, "code": code, "message": message}
        try:
            self._forget(running)
        finally:  # its client hears of the end whatever state the scheduler is in
            self._send(running, event)

    def _forget(self, running: _Running) -> None:
        del self._running[running.sequence.id]
        with self._changed:
            self._ids.discard(running.sequence.id)
            self._changed.notify_all()
        self._groups.remove(running.sequence)

    def _send(self, running: _Running, event: Event) -> None:
        try:
            running.on_event(event)
        except BaseException:  # a listener is a stranger's code and this thread serves everybody
            log.exception("the listener of request %s failed", running.sequence.id)
            if running.sequence.id in self._ids:
                self.cancel(running.sequence.id)

    def _refuse(self, reason: str) -> None:
        with self._changed:
            self._refusal = self._refusal or reason

    def _fail_all(self, reason: str) -> None:
        with self._changed:
            commands, self._commands = self._commands, deque()
        for command, value in commands:
            if command == "submit":
                self._running[value.sequence.id] = value
        for running in list(self._running.values()):
            try:
                self._error(running, "UNAVAILABLE", reason)
            except Exception:  # a scheduler left in the middle of a step refuses; the others are told
                log.exception("request %s was not taken back", running.sequence.id)
