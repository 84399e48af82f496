"""Answers of ``/v1/chat/completions`` from the parts of their choices: whole, or chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

from mm2c_runtime.openai.answer import Head, Parts, Usage, checked
from mm2c_runtime.openai.logprobs import chat_logprobs
from mm2c_runtime.openai.triton import Part


async def chat_completion(parts: Parts, head: Head, usage: Usage) -> dict[str, Any]:
    """A ``chat.completion``. Raises RequestError where a choice fails."""
    choices: dict[int, dict[str, Any]] = {}
    async with aclosing(parts):
        async for index, part in parts:  # one part a choice
            usage.add(index, checked(part))
            choices[index] = _choice(index, part)
    return head.of([choices[index] for index in sorted(choices)], usage=usage.body)


def _choice(index: int, part: Part) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": part.text if part.text or not part.tool_calls else None,
        "refusal": None,
        "reasoning_content": part.reasoning or None,
    }
    if part.tool_calls:
        message["tool_calls"] = part.tool_calls
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(part.logprobs) if part.logprobs else None,
        "finish_reason": part.finish_reason,
    }


class ChatChunks:
    """The choices of a stream's chunks; the first of each index tells the role."""

    def __init__(self) -> None:
        self._begun = 0  # choices 0 to this one have told their role

    def __call__(self, index: int, part: Part) -> Iterator[dict[str, Any]]:
        """Reasoning, content and calls in chunks of their own: many clients look for one of them only."""
        # The official client's accumulator appends what it sees first: a choice may not begin before a lower one.
        for beginning in range(self._begun, index + 1):
            yield _chunk(beginning, {"role": "assistant", "content": ""})
        self._begun = max(self._begun, index + 1)
        logprobs = chat_logprobs(part.logprobs) if part.logprobs else None
        deltas: list[dict[str, Any]] = []
        if part.reasoning:
            deltas.append({"reasoning_content": part.reasoning})
        if part.text:
            deltas.append({"content": part.text})
        if part.tool_calls:
            deltas.append({"tool_calls": part.tool_calls})
        if not deltas and logprobs:
            deltas.append({})
        for number, delta in enumerate(deltas, 1):
            yield _chunk(index, delta, logprobs if number == len(deltas) else None)
        if part.finish_reason is not None:
            yield _chunk(index, {}, finish_reason=part.finish_reason)


def _chunk(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
