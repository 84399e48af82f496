"""The incremental parser: one state machine, of which parsing a whole text is the case of a single chunk.

Grammar of a completion (``?`` marks the newlines that belong to a marker; a prompt that ends in ``<think>`` and a
newline starts in reasoning):

    message   = [ "<think>" \\n? ] reasoning \\n? "</think>" \\n? \\n? content { \\n? block content }
    block     = "<minimax:tool_call>" { invoke } "</minimax:tool_call>"
    invoke    = "<invoke name=" name ">" { "<parameter name=" name ">" value "</parameter>" } "</invoke>"

Reasoning also ends where a block begins. Text in a block outside its invokes is content, space there is not; text
in an invoke outside its values is dropped. ``<think>`` opens reasoning only while the content is blank.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any

from mm2c_runtime.parsing import markers as m
from mm2c_runtime.parsing.call import OpenCall
from mm2c_runtime.parsing.header import Header, read_header
from mm2c_runtime.parsing.message import Delta, DeltaKind, Incomplete, Message, ToolCall
from mm2c_runtime.parsing.tools import Tools

# A state reads text from a position and returns the next one, or _WAIT when it has kept the rest as pending.
_State = Callable[[str, int], int]
_WAIT = -1

_SPACE = re.compile(r"\s*")
_OPENING = m.finder(m.THINK)
_REASONING = {hold: m.finder(newline_before=(m.END_THINK, m.BLOCK), hold=hold) for hold in (True, False)}
_CONTENT = {
    hold: m.finder(m.THINK, m.END_THINK, newline_before=(m.BLOCK,), hold=hold) for hold in (True, False)
}
_IN_BLOCK = m.finder(m.INVOKE, m.END_BLOCK, m.BLOCK, m.END_INVOKE, m.END_PARAMETER, m.END_THINK)
_IN_CALL = m.finder(m.PARAMETER, m.END_INVOKE, m.INVOKE, m.END_BLOCK, m.BLOCK)
_IN_VALUE = m.finder(m.END_PARAMETER, m.END_INVOKE)


class MessageStream:
    """Parses one completion as it arrives; any split into chunks gives the same message.

    ``tools`` are the OpenAI tool definitions of the request, whose schemas type the arguments.
    ``starts_in_reasoning`` says that the prompt ended inside ``<think>`` (see ``mm2c_runtime.chat.will_reason``).
    No text makes it raise.
    """

    def __init__(self, tools: Any = None, *, starts_in_reasoning: bool = True) -> None:
        self._tools = Tools(tools)
        self._state: _State = self._opening if starts_in_reasoning else self._content
        self._pending = ""  # the beginning of a marker, perhaps
        self._withheld: list[str] = []  # from an </invoke> inside a value on
        self._withheld_tail = ""
        self._newlines = 0  # still to be taken as the last marker's own
        self._final = self._finished = False
        self._deltas: list[Delta] = []
        self._reasoning: list[str] = []
        self._said: list[str] = []
        self._blank = True  # no content but space yet
        self._bare_block = False  # a block is open in which nothing has been read yet
        self._stray = False  # in text between the invokes of a block
        self._calls: list[ToolCall] = []
        self._opened = 0
        self._call: OpenCall | None = None
        self._incomplete: Incomplete | None = None

    def feed(self, text: str) -> list[Delta]:
        """Takes the next piece of the completion and returns what it adds. After ``finish`` it adds nothing."""
        if self._finished:
            return []
        text = self._pending + text
        self._pending = ""
        position = 0
        while 0 <= position < len(text):
            position = self._state(text, position)
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self) -> list[Delta]:
        """Ends the text: what was held back becomes what it is, and an open call is cut."""
        self._final = True
        withheld = "".join(self._withheld)
        if withheld:
            self._withheld, self._state = [], self._value
        deltas = self.feed(withheld)
        self._finished = True
        if self._call is not None:
            self._cut()
        elif self._bare_block:
            self._note(Incomplete("block"))
        return deltas

    @property
    def message(self) -> Message:
        """The message so far; the whole one after ``finish``."""
        return Message("".join(self._reasoning), "".join(self._said), list(self._calls), self._incomplete)
"""
