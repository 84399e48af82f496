"""Continuous batching: which rows the next step has. No threads, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mm2c_runtime.errors import Code, RequestError
from mm2c_runtime.kv import RowPool
from mm2c_runtime.scheduling.deadlines import Deadlines
from mm2c_runtime.scheduling.sequence import Sequence
from mm2c_runtime.scheduling.waiting import WaitingQueue
from mm2c_runtime.step import RowCopy, RowResult, RowStep, StepBatch, StepResult, TokenLogprobs

Ending = Literal["stop", "complete", "length", "error"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step gave one request. ``ending`` is set with its last token: a stop token, one that completes
    what a grammar allows, the token limit, or an ``error`` of this row; the request's row is already free then.
    """

    sequence: Sequence
    token: int | None
    logprobs: TokenLogprobs | None = None
    ending: Ending | None = None
    error: str | None = None
    code: Code = "INTERNAL"  # of the error


class Scheduler:
    """Admits by cache rows and KV budget, prefills in chunks, decodes all running rows together.

    A prefill chunk and a decode step alternate while both have work, so neither a long prompt nor many
    running requests can hold up the other. One prompt is prefilled at a time. Usage: ``next_batch`` → run →
    ``apply`` or ``fail``; ``add`` at any time, ``remove`` only between steps. Schedulers of several groups share
    ``waiting`` and ``deadlines``; requests are added to one of them, and whoever can admit takes the next.
    """

    def __init__(
        self,
        pool: RowPool,
        *,
        prefill_chunk: int,
        waiting: WaitingQueue | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.pool, self.prefill_chunk = pool, prefill_chunk
        self._waiting = WaitingQueue() if waiting is None else waiting
        self._deadlines = Deadlines() if deadlines is None else deadlines
        self._prefilling: Sequence | None = None
        self._decoding: list[Sequence] = []  # by row
        self._batch: StepBatch | None = None  # in flight
        self._in_flight: list[Sequence] = []  # the sequences of its rows
        self._copies: list[RowCopy] = []  # for the next step
        self._released: list[int] = []
        self._arrivals = 0
        self._steps = 0
        self._prefilled_last = False

    def add(self, sequence: Sequence) -> None:
        """Raises ValueError where it never fits: prompt + max_tokens beyond the context or the budget."""
        if not sequence.prompt or sequence.max_tokens < 1:
            raise ValueError("a sequence needs a prompt and room for at least one token")
        if not self.pool.could_fit(sequence.tokens):
            most = min(self.pool.context, self.pool.budget)
            raise ValueError(f"prompt and max_tokens are {sequence.tokens} tokens; at most {most} fit")
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._waiting.push(sequence)
        self._deadlines.add(sequence)

    def remove(self, sequence: Sequence) -> bool:
        """Forgets a request and frees its row at once; False where it is not (or no longer) here."""
        if self._batch is not None:
            raise ValueError("a step is in flight")
        self._deadlines.forget(sequence)
        if sequence is self._prefilling:
            self._prefilling = None
        elif sequence in self._decoding:
            self._decoding.remove(sequence)
        else:
            return self._waiting.remove(sequence.id) is sequence
        self._released.append(self._withdraw(sequence.row))
        move = self.pool.release(sequence.row)
        if move is not None:
            self._move(move)
        sequence.row = -1
        return True

    def _withdraw(self, row: int) -> int:
        """Calls off the copies that were to move the sequence of ``row``; the row that it is in until then."""
        for place in reversed(range(len(self._copies))):
            if self._copies[place].target == row:
                row = self._copies.pop(place).source
        return row

    def _move(self, copy: RowCopy) -> None:
        """Every copy moves the sequence in its source row."""
        for sequence in self:
            if sequence.row == copy.source:
                sequence.row = copy.target
                break
        self._decoding.sort(key=lambda sequence: sequence.row)
        self._copies.append(copy)

    def expired(self, now: float) -> list[Sequence]:
        """Requests whose deadline has passed, waiting or running, each told once; the caller removes them."""
        return self._deadlines.passed(now)

    def __iter__(self) -> Iterator[Sequence]:
        """Every request that has not ended: decoding, prefilling, waiting."""
        yield from self._decoding
        if self._prefilling is not None:
            yield self._prefilling
        yield from self._waiting

    @property
    def in_flight(self) -> bool:
        """Whether a step was given out and neither applied nor failed."""
        return self._batch is not None

    @property
    def running(self) -> int:
        return len(self._decoding) + (self._prefilling is not None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def decoding(self) -> bool:
        """Whether somebody decodes."""
        return bool(self._decoding)

    def next_batch(self, *, may_prefill: bool = True) -> StepBatch | None:
        """The next step, or None where nothing is to be done. Without ``may_prefill`` it is a prefill only where nobody
        decodes."""
        if self._batch is not None:
            raise ValueError("a step is in flight")
        if self._prefilling is None:
            self._admit()
        decode_first = self._decoding and (self._prefilled_last or not may_prefill)
        prefill = self._prefilling is not None and not decode_first
        if not prefill and not self._decoding:
            return None
        self._prefilled_last = prefill
        self._steps += 1
        self._batch = self._prefill_batch() if prefill else self._decode_batch()
        self._copies, self._released = [], []
        return self._batch

    def _admit(self) -> None:
        sequence = self._waiting.next() if self.pool.free else None
        if sequence is not None and self.pool.fits(sequence.tokens):
            self._waiting.take(sequence)
            sequence.row = self.pool.allocate(sequence.tokens)
            self._prefilling = sequence

    def _prefill_batch(self) -> StepBatch:
        sequence = self._prefilling
        assert sequence is not None
        end = min(sequence.past_len + self.prefill_chunk, len(sequence.prompt))
        step = RowStep(
            row=sequence.row,
            tokens=list(sequence.prompt[sequence.past_len : end]),
            past_len=sequence.past_len,
            new_len=end - sequence.past_len,
            sample=end == len(sequence.prompt),
            logprobs=sequence.logprobs,
            blocks=self.pool.take_blocks(sequence.row),
        )
        if sequence.past_len == 0:
            step.sampling = sequence.sampling
            step.history = list(sequence.prompt) if sequence.penalised else []
        if step.sample and sequence.allowed is not None:
            step.bitmask = sequence.allowed.bitmask(sequence.generated)
        self._in_flight = [sequence]
        return StepBatch(self._steps, "prefill", [step], self._copies, self._released)

    def _decode_batch(self) -> StepBatch:
        self._in_flight = list(self._decoding)
        rows = [self._decode_row(sequence) for sequence in self._decoding]
        return StepBatch(self._steps, "decode", rows, self._copies, self._released)

    def _decode_row(self, sequence: Sequence) -> RowStep:
        last = sequence.generated[-1]
        news = [last] if sequence.penalised else []
        allowed = sequence.allowed
        return RowStep(
            row=sequence.row,
            tokens=[last],
            past_len=sequence.past_len,
            new_len=1,
            sample=True,
            token_index=len(sequence.generated),
            history=news,
            generated=news,
            bitmask=allowed.bitmask(sequence.generated) if allowed is not None else None,
            logprobs=sequence.logprobs,
            blocks=self.pool.take_blocks(sequence.row),
        )

    def apply(self, result: StepResult) -> list[Outcome]:
        """Takes the result of the step in flight, in the order of its rows; ended requests are forgotten."""
        batch, in_flight = self._landed()
        for sequence, step in zip(in_flight, batch.rows, strict=True):
            self.pool.advance(step.row, step.new_len)
            sequence.past_len += step.new_len
        by_row = {row.row: row for row in result.rows}
        outcomes = []
        for sequence, step in zip(in_flight, batch.rows, strict=True):
            outcome = self._outcome(sequence, step, by_row.get(step.row))
            if outcome is not None:
                outcomes.append(outcome)
        for outcome in outcomes:
            if outcome.ending is not None:
                self.remove(outcome.sequence)
        return outcomes

    def _outcome(self, sequence: Sequence, step: RowStep, row: RowResult | None) -> Outcome | None:
        if row is None or (row.token is None and row.error is None and step.sample):
            return Outcome(sequence, None, ending="error", error="the step gave no result for this row")
        if row.error is not None:
            return Outcome(sequence, None, ending="error", error=row.error, code=row.code)
        if row.token is None:
            return None
        sequence.generated.append(row.token)
        try:
            complete = sequence.allowed is not None and sequence.allowed.take(row.token)
        except RequestError as error:
            return Outcome(sequence, None, ending="error", error=error.message, code=error.code)
        if sequence is self._prefilling:
            self._prefilling = None
            self._decoding.append(sequence)
            for copy in self.pool.promote(sequence.row):
                self._move(copy)
        return Outcome(sequence, row.token, row.logprobs, self._ending(sequence, row.token, complete))

    def fail(self, message: str) -> list[Outcome]:
        """The step in flight failed as a whole: ends the requests that were in it, and those whose cache it
        was to move, for nobody knows whether it did."""
        batch, in_flight = self._landed()
        moved = {copy.target for copy in batch.copies}
        failed = in_flight + [s for s in self if s.row in moved and s not in in_flight]
        for sequence in failed:
            self.remove(sequence)
        return [Outcome(sequence, None, ending="error", error=message) for sequence in failed]

    def _landed(self) -> tuple[StepBatch, list[Sequence]]:
        if self._batch is None:
            raise ValueError("no step is in flight")
        batch, self._batch = self._batch, None
        return batch, self._in_flight

    @staticmethod
    def _ending(sequence: Sequence, token: int, complete: bool) -> Ending | None:
        count = len(sequence.generated)
        if token in sequence.stop_tokens and (complete or count >= sequence.min_tokens):
            return "stop"
        if complete:
            return "complete"
        return "length" if count >= sequence.max_tokens else None
