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
        self._begun: set[int] = set()

    def __call__(self, index: int, part: Part) -> Iterator[dict[str, Any]]:
        """Reasoning, content and calls in chunks of their own: many clients look for one of them only."""
        logprobs = chat_logprobs(part.logprobs) if part.logprobs else None
        deltas: list[dict[str, Any]] = []
        if index not in self._begun:
            self._begun.add(index)
            deltas.append({"role": "assistant", "content": ""})
        if part.reasoning:
            deltas.append({"reasoning_content": part.reasoning})
        if part.text:
            deltas.append({"content": part.text})
        if part.tool_calls:
            deltas.append({"tool_calls": part.tool_calls})
        if not deltas and logprobs:
            deltas.append({})
        for number, delta in enumerate(deltas, 1):
            last = logprobs if number == len(deltas) else None
            yield {"index": index, "delta": delta, "logprobs": last, "finish_reason": None}
        if part.finish_reason is not None:
            yield {"index": index, "delta": {}, "logprobs": None, "finish_reason": part.finish_reason}
