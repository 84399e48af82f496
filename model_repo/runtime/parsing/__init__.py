"""Reads what the model wrote: reasoning, content and tool calls, whole or as it streams."""

from __future__ import annotations

from mm2c_runtime.parsing.message import Delta, Incomplete, Message, ToolCall
from mm2c_runtime.parsing.reasoning import ParsedReasoning, ReasoningParser, ReasoningSpan
from mm2c_runtime.parsing.stream import MessageStream
from mm2c_runtime.parsing.whole import parse_message

__all__ = [
    "Delta",
    "Incomplete",
    "Message",
    "MessageStream",
    "ParsedReasoning",
    "ReasoningParser",
    "ReasoningSpan",
    "ToolCall",
    "parse_message",
]
