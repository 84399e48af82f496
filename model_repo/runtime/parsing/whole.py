"""A completion that is there as a whole."""

from __future__ import annotations

from typing import Any

from mm2c_runtime.parsing.message import Message
from mm2c_runtime.parsing.stream import MessageStream


def parse_message(
    text: str,
    tools: Any = None,
    *,
    starts_in_reasoning: bool = True,
    calls: bool = True,
    cut: bool = False,
) -> Message:
    """Parses a whole completion; the same as streaming it, in one chunk. Never raises."""
    stream = MessageStream(tools, starts_in_reasoning=starts_in_reasoning, calls=calls)
    stream.feed(text)
    stream.finish(cut=cut)
    return stream.message
