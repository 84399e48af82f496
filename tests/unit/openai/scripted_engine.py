"""An engine behind the front that says what a test told it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from mm2c_runtime.openai.triton import Part

Script = Callable[[dict[str, Any]], list[Any]]


def hello(fields: dict[str, Any]) -> list[Any]:
    return [Part(reasoning="I think."), Part(text="Hello"), ended("stop")]


def ended(reason: str, prompt: int = 5, completion: int = 3, **more: Any) -> Part:
    return Part(finish_reason=reason, num_input_tokens=prompt, num_output_tokens=completion, **more)


class ScriptedEngine:
    """``script`` maps the inputs of a request to what comes: Parts, exceptions that are raised, None to wait for
    ever. Requests that do not stream get the parts of text joined, as the real one has them."""

    def __init__(self) -> None:
        self.script: Script = hello
        self.is_ready = True
        self.asked: list[dict[str, Any]] = []
        self.running = 0

    async def ready(self) -> bool:
        return self.is_ready

    async def close(self) -> None:
        return

    async def generate(self, fields: dict[str, Any], *, logprobs: bool) -> AsyncGenerator[Part]:
        self.asked.append(fields)
        self.running += 1
        parts: list[Part] = []
        try:
            for part in self.script(fields):
                await asyncio.sleep(0)
                if part is None:
                    await asyncio.Event().wait()
                elif isinstance(part, Exception):
                    raise part
                elif fields["stream"]:
                    yield part
                else:
                    parts.append(part)
            if parts:
                yield _joined(parts)
        finally:
            self.running -= 1


def _joined(parts: list[Part]) -> Part:
    last = parts[-1]
    return Part(
        "".join(part.text for part in parts),
        "".join(part.reasoning for part in parts),
        [call for part in parts for call in part.tool_calls],
        [token for part in parts for token in part.logprobs],
        last.finish_reason,
        last.num_input_tokens,
        last.num_output_tokens,
    )
