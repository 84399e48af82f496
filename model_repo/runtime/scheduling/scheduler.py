"""Continuous batching: which rows the next step has. No threads, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mm2c_runtime.scheduling.rows import Rows
from mm2c_runtime.scheduling.sequence import Sequence
from mm2c_runtime.scheduling.waiting import WaitingQueue
from mm2c_runtime.step import RowResult, RowStep, StepBatch, StepResult, TokenLogprobs

Ending = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step gave one request. ``ending`` is set with its last token: a stop token, the token limit,
    or an ``error`` of this row; the request's row is already free then."""

    sequence: Sequence
    token: int | None
    logprobs: TokenLogprobs | None = None
    ending: Ending | None = None
    error: str | None = None


class Scheduler:
    """Admits by cache rows, prefills in chunks, decodes all running rows together.

    A prefill chunk and a decode step alternate while both have work, so neither a long prompt nor many
    running requests can hold up the other. One prompt is prefilled at a time. Usage: ``next_batch`` → run →
    ``apply`` (or ``fail``), with ``add`` and ``remove`` at any time in between.
    """

    def __init__(self, *, context: int, max_rows: int, prefill_chunk: int) -> None:
        self.context, self.prefill_chunk = context, prefill_chunk
        self._rows = Rows(max_rows)
        self._waiting = WaitingQueue()
        self._prefilling: Sequence | None = None
        self._decoding: list[Sequence] = []
        self._in_flight: list[Sequence] = []
        self._arrivals = 0
        self._steps = 0
        self._prefilled_last = False

    def add(self, sequence: Sequence) -> None:
        """Raises ValueError where it could never be admitted: prompt + max_tokens beyond the context."""
        if not sequence.prompt or sequence.max_tokens < 1:
            raise ValueError("a sequence needs a prompt and room for at least one token")
        if len(sequence.prompt) + sequence.max_tokens > self.context:
            raise ValueError(f"prompt and max_tokens exceed the context of {self.context}")
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._waiting.push(sequence)

    def remove(self, sequence: Sequence) -> bool:
        """Forgets a request and frees its row at once; False where it is not (or no longer) here."""
        if sequence is self._prefilling:
            self._prefilling = None
        elif sequence in self._decoding:
            self._decoding.remove(sequence)
        else:
            return self._waiting.remove(sequence.id) is sequence
        self._rows.release(sequence)
        return True

    def expired(self, now: float) -> list[Sequence]:
        """Requests whose deadline has passed, waiting or running; the caller removes them."""
        return [s for s in self if s.deadline is not None and s.deadline <= now]

    def __iter__(self) -> Iterator[Sequence]:
        """Every request that has not ended: decoding, prefilling, waiting."""
        yield from self._decoding
        if self._prefilling is not None:
            yield self._prefilling
        yield from self._waiting

    @property
    def running(self) -> int:
        return len(self._decoding) + (self._prefilling is not None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def next_batch(self) -> StepBatch | None:
        """The next step, or None where nothing is to be done."""
        if self._prefilling is None and self._waiting and self._rows.free and self._may_start():
            self._prefilling = self._waiting.pop()
            self._rows.acquire(self._prefilling, above=len(self._decoding))
        prefill = self._prefilling is not None and not (self._prefilled_last and self._decoding)
        if not prefill and not self._decoding:
            return None
        self._prefilled_last = prefill
        self._steps += 1
        return self._prefill_batch() if prefill else self._decode_batch()

    def _may_start(self) -> bool:
        # a hole among the decoding rows is closed by the next decode step; until then rows above them may
        # be taken
        return self._rows.compact(len(self._decoding))

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
        )
        if sequence.past_len == 0:
            step.sampling = sequence.sampling
            step.history = list(sequence.prompt) if sequence.penalised else []
        if step.sample and sequence.allowed is not None:
            step.bitmask = sequence.allowed.bitmask(sequence.generated)
        self._in_flight = [sequence]
        return StepBatch(self._steps, "prefill", [step], released=self._rows.take_released())

    def _decode_batch(self) -> StepBatch:
        released = self._rows.take_released()
        copies = self._rows.close_holes(self._decoding)
        self._decoding.sort(key=lambda sequence: sequence.row)
        self._in_flight = list(self._decoding)
        return StepBatch(
            self._steps,
            "decode",
            [self._decode_row(s) for s in self._decoding],
            copies=copies,
            released=released,
        )

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
        )

    def apply(self, batch: StepBatch, result: StepResult) -> list[Outcome]:
        """Takes a step's result. Requests removed while it ran are passed over; an ended one is forgotten."""
        outcomes = []
        for sequence, step, row in self._pairs(batch, result):
            if row.error is not None:
                self.remove(sequence)
                outcomes.append(Outcome(sequence, None, ending="error", error=row.error))
                continue
            sequence.past_len += step.new_len
            if not step.sample:
                continue
            if row.token is None:
                self.remove(sequence)
                outcomes.append(Outcome(sequence, None, ending="error", error="the step returned no token"))
                continue
            sequence.generated.append(row.token)
            if sequence is self._prefilling:
                self._prefilling = None
                self._decoding.append(sequence)
            ending = self._ending(sequence, row.token)
            if ending is not None:
                self.remove(sequence)
            outcomes.append(Outcome(sequence, row.token, row.logprobs, ending))
        self._in_flight = []
        return outcomes

    def fail(self, message: str) -> list[Outcome]:
        """The step in flight failed as a whole: ends the requests that were in it."""
        failed = [s for s in self._in_flight if self.remove(s)]
        self._in_flight = []
        return [Outcome(sequence, None, ending="error", error=message) for sequence in failed]

    def _pairs(self, batch: StepBatch, result: StepResult) -> Iterator[tuple[Sequence, RowStep, RowResult]]:
        by_row = {row.row: row for row in result.rows}
        present = {id(sequence) for sequence in self}
        for sequence, step in zip(self._in_flight, batch.rows, strict=True):
            if id(sequence) in present:
                yield (
                    sequence,
                    step,
                    by_row.get(step.row) or RowResult(step.row, error="the step lost this row"),
                )

    @staticmethod
    def _ending(sequence: Sequence, token: int) -> Ending | None:
        count = len(sequence.generated)
        if token in sequence.stop_tokens and count >= sequence.min_tokens:
            return "stop"
        return "length" if count >= sequence.max_tokens else None
