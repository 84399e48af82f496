"""Answers of ``Bundle.generate``: whole, or as they grow."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mm2c_runtime.answer import Event
from mm2c_runtime.errors import RequestError
from mm2c_runtime.tool_calls import whole


@dataclass(frozen=True)
class Completion:
    """``tool_calls`` are whole calls in OpenAI's shape (``arguments`` is JSON text); ``finish_reason`` is
    stop, length, tool_calls or cancelled. ``seed`` reproduces the answer. ``logprobs``: one object a token,
    or None. ``incomplete`` says which call was cut, if one was (``parsing.message.Incomplete``)."""

    text: str
    reasoning: str
    tool_calls: list[dict[str, Any]]
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int
    token_ids: list[int] = field(repr=False)
    seed: int
    logprobs: list[dict[str, Any]] | None = field(default=None, repr=False)
    incomplete: dict[str, Any] | None = None


@dataclass(frozen=True)
class CompletionDelta:
    """What one event adds; ``tool_calls`` are OpenAI-shaped deltas. The last one has no text and
    ``finish_reason``, counts and ``seed`` set."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    seed: int | None = None
    incomplete: dict[str, Any] | None = None


class Deltas(Iterator[CompletionDelta]):
    """Ends with the request; raises RequestError where it failed.

    ``close`` cancels a request that has not ended, and so does letting go of the iterator, also of one that
    was never begun (a generator's ``finally`` would not run then).
    """

    def __init__(self, events: queue.SimpleQueue[Event], cancel: Callable[[], None]) -> None:
        self._events, self._cancel = events, cancel
        self._ended = False

    def __iter__(self) -> Deltas:
        return self

    def __next__(self) -> CompletionDelta:
        while not self._ended:
            try:
                event = self._events.get()
            except BaseException:  # Ctrl-C in a loop that nobody resumes
                self.close()
                raise
            self._ended = event["type"] in ("finish", "error")
            if event["type"] == "error":
                raise RequestError(event["code"], event["message"])
            if event["type"] in ("delta", "finish"):
                names = CompletionDelta.__dataclass_fields__
                return CompletionDelta(**{name: event[name] for name in names if name in event})
        raise StopIteration

    def close(self) -> None:
        """Cancels the request where it has not ended; the iteration ends. Safe to repeat."""
        if not self._ended:
            self._ended = True
            self._cancel()

    def __enter__(self) -> Deltas:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Stream:
    """Events of one request, from the engine's thread to the caller's."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._cancel = cancel

    def put(self, event: Event) -> None:
        self._events.put(event)

    def deltas(self) -> Deltas:
        """To be called once."""
        return Deltas(self._events, self._cancel)

    def completion(self) -> Completion:
        """Waits for the end. Raises RequestError."""
        text, reasoning = [], []
        calls: list[dict[str, Any]] = []
        token_ids: list[int] = []
        logprobs: list[dict[str, Any]] | None = None
        last = CompletionDelta()
        for last in self.deltas():
            text.append(last.text)
            reasoning.append(last.reasoning)
            token_ids += last.token_ids
            calls += last.tool_calls
            if last.logprobs is not None:
                logprobs = (logprobs or []) + last.logprobs
        return Completion(
            text="".join(text),
            reasoning="".join(reasoning),
            tool_calls=whole(calls),
            finish_reason=last.finish_reason or "",
            num_input_tokens=last.num_input_tokens or 0,
            num_output_tokens=last.num_output_tokens or 0,
            token_ids=token_ids,
            seed=last.seed or 0,
            logprobs=logprobs,
            incomplete=last.incomplete,
        )
