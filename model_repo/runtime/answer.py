"""The answer to one request as it grows: token ids in, client events out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Literal

from mm2c_runtime.detokenizer import Detokenizer, TokenBytes
from mm2c_runtime.generation import Generation
from mm2c_runtime.parsing import Delta, MessageStream
from mm2c_runtime.step import TokenLogprobs
from mm2c_runtime.stop import StopStrings
from mm2c_runtime.tool_calls import append_call

Event = dict[str, Any]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


class Answer:
    """Detokenises, cuts at stop strings, parses; ``take`` hands over what has become certain since the last
    call. Where the generation is not to be parsed its text is passed on verbatim."""

    def __init__(self, request_id: str, generation: Generation, token_bytes: TokenBytes) -> None:
        self.id, self.generation = request_id, generation
        self.num_tokens = 0
        self.incomplete: dict[str, Any] | None = (
            None  # the call that was cut, as ``parsing.message`` tells it
        )
        self._token_bytes = token_bytes
        self._detokenizer = Detokenizer(token_bytes)
        self._stops = StopStrings(generation.stop)
        self._parser: MessageStream | None = None
        if generation.parse:
            self._parser = MessageStream(
                generation.tools,
                starts_in_reasoning=generation.starts_in_reasoning,
                calls=generation.calls,
            )
        self._text, self._reasoning = [generation.echo] if generation.echo else [], list[str]()
        self._calls: list[dict[str, Any]] = []
        self._tokens: list[int] = []
        self._logprobs: list[dict[str, Any]] = []

    @property
    def stopped(self) -> bool:
        """A stop string is complete."""
        return self._stops.hit is not None

    def add(self, token: int, logprobs: TokenLogprobs | None = None, *, silent: bool = False) -> None:
        """One generated token; ``silent``: a stop token, counted but without text."""
        self.num_tokens += 1
        self._tokens.append(token)
        if logprobs is not None:
            top = [self._logprob(token, value) for token, value in logprobs.top]
            self._logprobs.append({**self._logprob(token, logprobs.chosen), "top": top})
        if silent:
            return
        text = self._detokenizer.feed((token,))
        if self.num_tokens >= self.generation.min_tokens:
            text = self._stops.feed(text)
        self._parse(text)

    def finish(self, reason: FinishReason) -> FinishReason:
        """Flushes what was held back; returns the reason that the client is told."""
        if not self.stopped:
            self._parse(self._stops.feed(self._detokenizer.finish()))
        if not self.stopped:
            self._parse(self._stops.finish())
        if self._parser is None:
            return reason
        self._collect(self._parser.finish(cut=reason != "stop" or self.stopped))
        message = self._parser.message
        self.incomplete = None if message.incomplete is None else asdict(message.incomplete)
        whole = {call.index for call in message.tool_calls}
        if not self.generation.stream:  # told at once, a cut call would look like any other
            self._calls = [call for call in self._calls if call["index"] in whole]
        return "tool_calls" if reason == "stop" and whole else reason

    def take(self) -> Event | None:
        """The next delta event; None while nothing can be shown (its tokens come with a later one)."""
        if not (self._text or self._reasoning or self._calls):
            return None
        return self.flush()

    def flush(self) -> Event | None:
        """The next delta event even where it holds token ids only; None where there is nothing at all."""
        if not (self._text or self._reasoning or self._calls or self._tokens):
            return None
        event: Event = {
            "type": "delta",
            "id": self.id,
            "text": "".join(self._text),
            "reasoning": "".join(self._reasoning),
            "tool_calls": self._calls,
            "token_ids": self._tokens,
            "logprobs": self._logprobs if self.generation.logprobs is not None else None,
        }
        self._text, self._reasoning, self._calls, self._tokens, self._logprobs = [], [], [], [], []
        return event

    def _logprob(self, token: int, value: float) -> dict[str, Any]:
        return {"token": token, "logprob": value, "bytes": list(self._token_bytes[token])}

    def _parse(self, text: str) -> None:
        if not text:
            return
        if self._parser is None:
            self._text.append(text)
        else:
            self._collect(self._parser.feed(text))

    def _collect(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            if delta.kind == "content":
                self._text.append(delta.text)
            elif delta.kind == "reasoning":
                self._reasoning.append(delta.text)
            elif delta.kind == "call":
                function = {"name": delta.name, "arguments": delta.text}
                self._calls.append(
                    {"index": delta.index, "id": delta.id, "type": "function", "function": function}
                )
            else:
                append_call(self._calls, {"index": delta.index, "function": {"arguments": delta.text}})


def merge_deltas(first: Event, second: Event) -> Event:
    """Two consecutive deltas of one request as one; neither may be used afterwards."""
    for call in second["tool_calls"]:
        append_call(first["tool_calls"], call)
    for name in ("text", "reasoning", "token_ids"):
        first[name] = first[name] + second[name]
    if first["logprobs"] is not None:
        first["logprobs"] += second["logprobs"] or []
    return first
