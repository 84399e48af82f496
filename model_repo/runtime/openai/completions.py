"""Answers of ``/v1/completions`` from the parts of their choices: whole, or chunk by chunk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

from mm2c_runtime.openai.answer import Head, Parts, Usage, checked
from mm2c_runtime.openai.completion_request import CompletionRequest
from mm2c_runtime.openai.logprobs import CompletionLogprobs
from mm2c_runtime.openai.triton import Part


async def text_completion(parts: Parts, head: Head, usage: Usage, asked: CompletionRequest) -> dict[str, Any]:
    """A ``text_completion``. Raises RequestError where a choice fails."""
    choices: dict[int, dict[str, Any]] = {}
    chunks = TextChunks(asked)
    async with aclosing(parts):
        async for index, part in parts:  # one part a choice
            usage.add(index, checked(part))
            (choices[index],) = chunks(index, part)
    return head.of([choices[index] for index in sorted(choices)], usage=usage.body)


class TextChunks:
    """The choices of a stream's chunks; with ``echo`` the first of each index begins with its prompt."""

    def __init__(self, asked: CompletionRequest) -> None:
        self._asked = asked
        self._logprobs: defaultdict[int, CompletionLogprobs] = defaultdict(CompletionLogprobs)
        self._begun: set[int] = set()

    def __call__(self, index: int, part: Part) -> Iterator[dict[str, Any]]:
        text = part.text
        if index not in self._begun:
            self._begun.add(index)
            text = self._asked.prompts[index // self._asked.n] + text if self._asked.echo else text
        elif not text and not part.logprobs and part.finish_reason is None:
            return
        logprobs = self._logprobs[index].add(part.logprobs) if self._asked.logprobs is not None else None
        yield {"index": index, "text": text, "logprobs": logprobs, "finish_reason": part.finish_reason}
