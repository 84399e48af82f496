"""What answers of both kinds have in common: identity, usage, and the frame of a stream."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from mm2c_runtime.errors import RequestError
from mm2c_runtime.openai.errors import ApiError, of_engine
from mm2c_runtime.openai.triton import Part

Parts = AsyncGenerator[tuple[int, Part]]
DONE = b"data: [DONE]\n\n"
log = logging.getLogger("mm2c.openai")


def json_bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json_bytes(value) + b"\n\n"


@dataclass
class Head:
    """The members that an answer and every chunk of it begin with. ``prefix``: ``chatcmpl-`` or ``cmpl-``."""

    prefix: str
    object: str
    model: str
    system_fingerprint: str | None
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = self.prefix + secrets.token_hex(16)

    def of(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": choices,
            **more,
        }


@dataclass
class Usage:
    """Counts over all choices; the choices of one prompt count its tokens once. ``n``: choices a prompt."""

    n: int
    prompt: dict[int, int] = field(default_factory=dict)
    completion: int = 0

    def add(self, index: int, part: Part) -> None:
        """``part``: the last one of choice ``index``."""
        self.prompt[index // self.n] = part.num_input_tokens
        self.completion += part.num_output_tokens

    @property
    def body(self) -> dict[str, int]:
        prompt = sum(self.prompt.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion,
            "total_tokens": prompt + self.completion,
        }


def checked(part: Part) -> Part:
    """``part``, unless it ends an answer that nobody wanted to end. Raises RequestError CANCELLED."""
    if part.finish_reason == "cancelled":
        raise RequestError("CANCELLED", "the server gave this request up; send it again")
    return part


async def stream(
    parts: Parts,
    head: Head,
    usage: Usage,
    chunks: Callable[[int, Part], Iterable[dict[str, Any]]],
    fields: Collection[str],
    *,
    usage_wanted: bool,
) -> AsyncGenerator[bytes]:
    """The events of an answer. ``chunks`` makes the choices of a part.

    A failure before the first part is raised as ApiError; a later one is an event, and the last.
    """
    more = {"usage": None} if usage_wanted else {}
    begun = False
    try:
        async with aclosing(parts):
            async for index, part in parts:
                if checked(part).finish_reason is not None:
                    usage.add(index, part)
                made = [event(head.of([choice], **more)) for choice in chunks(index, part)]
                if made:
                    begun = True
                    yield b"".join(made)
        if usage_wanted:
            yield event(head.of([], usage=usage.body))
        yield DONE
    except Exception as error:
        failure = told(error, fields)
        if not begun:
            raise failure from None
        yield event(failure.body)


def told(error: Exception, fields: Collection[str]) -> ApiError:
    """What the client hears of ``error``; the log hears of what is not the client's doing."""
    if isinstance(error, RequestError):
        if error.code == "INTERNAL":
            log.error("a request failed: %s", error)
        return of_engine(error, fields)
    log.error("a request failed unexpectedly", exc_info=error)
    return of_engine(RequestError("INTERNAL", ""), fields)
