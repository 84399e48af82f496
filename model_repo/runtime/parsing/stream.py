"""The incremental parser: one state machine, of which parsing a whole text is the case of a single chunk.

Grammar of a completion (``?`` marks the newlines that belong to a marker; a prompt that ends in ``<think>``
and a newline starts in reasoning):

    message   = [ "<think>" \\n? ] reasoning \\n? "</think>" \\n? \\n? content { \\n? block content }
    block     = "<minimax:tool_call>" { invoke } "</minimax:tool_call>"
    invoke    = "<invoke name=" name ">" { "<parameter name=" name ">" value "</parameter>" } "</invoke>"

Reasoning also ends where a block begins. Text in a block outside its invokes is content, space there is not;
text in an invoke outside its values is dropped. ``<think>`` opens reasoning only while the content is blank.

An answer that a regular expression or a user's grammar binds is read with ``calls=False``:

    message   = [ [ "<think>" \\n? ] reasoning \\n? "</think>" \\n? \\n? ] content

Where the prompt opened no reasoning the whole text is content; where it did, only ``</think>`` ends it. Content
is verbatim, markers and all. ``</think>`` still owns two newlines, so a grammar that writes exactly these has its
match as the content, to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mm2c_runtime.parsing import markers as m
from mm2c_runtime.parsing.header import Header, read_header
from mm2c_runtime.parsing.message import Delta, Incomplete, Message
from mm2c_runtime.parsing.tools import Tools
from mm2c_runtime.parsing.writer import MessageWriter

# A state reads text from a position and returns the next one, or _WAIT when it has kept the rest as pending.
_State = Callable[[str, int], int]
_WAIT = -1

_SPACE = re.compile(r"\s*")
_OPENING = m.finder(m.THINK)
_REASONING = {
    (calls, hold): m.finder(newline_before=(m.END_THINK, m.BLOCK) if calls else (m.END_THINK,), hold=hold)
    for calls in (True, False)
    for hold in (True, False)
}
_CONTENT = {
    hold: m.finder(m.THINK, m.END_THINK, newline_before=(m.BLOCK,), hold=hold) for hold in (True, False)
}
_IN_BLOCK = m.finder(m.INVOKE, m.END_BLOCK, m.BLOCK, m.END_INVOKE, m.END_PARAMETER, m.END_THINK)
_IN_CALL = m.finder(m.PARAMETER, m.END_INVOKE, m.INVOKE, m.END_BLOCK, m.BLOCK)
_IN_VALUE = m.finder(m.END_PARAMETER, m.END_INVOKE)


class MessageStream:
    """Parses one completion as it arrives; any split into chunks gives the same message.

    ``tools`` are the OpenAI tool definitions of the request, whose schemas type the arguments.
    ``starts_in_reasoning`` says that the prompt ended inside ``<think>`` (see
    ``mm2c_runtime.chat.will_reason``). ``calls`` False reads no tool calls: what comes after the reasoning is
    content, verbatim. No text makes it raise.
    """

    def __init__(self, tools: Any = None, *, starts_in_reasoning: bool = True, calls: bool = True) -> None:
        self._writer = MessageWriter(Tools(tools))
        self._calls = calls
        self._after_reasoning: _State = self._in_content if calls else self._verbatim
        self._state: _State = self._opening if starts_in_reasoning else self._after_reasoning
        self._pending = ""  # the beginning of a marker, perhaps
        self._withheld: list[str] = []  # from an </invoke> inside a value on
        self._tail = ""  # their last characters, where an end marker may have begun
        self._newlines = 0  # still to be taken as the last marker's own
        self._bare_block = False  # a block is open in which nothing has been read yet
        self._stray = False  # in text between the invokes of a block
        self._final = self._finished = False

    def feed(self, text: str) -> list[Delta]:
        """Takes the next piece of the completion and returns what it adds; after ``finish`` nothing."""
        if self._finished:
            return []
        text = self._pending + text
        self._pending = ""
        position = 0
        while 0 <= position < len(text):
            position = self._state(text, position)
        return self._writer.take()

    def finish(self, *, cut: bool = False) -> list[Delta]:
        """Ends the text: what was held back becomes what it is, and an open call is cut.

        ``cut``: the completion did not end by itself. An ``</invoke>`` inside an open value is data then, whose
        ``</parameter>`` may have been still to come: it must not make a whole call of half a one.
        """
        self._final = True
        withheld = "".join(self._withheld)
        if withheld:
            self._withheld, self._state = [], self._in_value
        if cut and withheld:
            self._writer.data(withheld)
            withheld = ""
        deltas = self.feed(withheld)
        self._finished = True
        self._writer.cut_call()
        if self._bare_block:
            self._writer.cut(Incomplete("block"))
        return deltas

    @property
    def message(self) -> Message:
        """The message so far; the whole one after ``finish``."""
        return self._writer.message()

    # ---- states

    def _opening(self, text: str, position: int) -> int:
        match = _OPENING.match(text, position)
        if match is not None and m.found(match) is None and not self._final:
            return self._wait(text, position)
        self._state = self._in_reasoning
        if match is None or m.found(match) is None:
            return position
        self._newlines = 1
        return match.end()

    def _in_reasoning(self, text: str, position: int) -> int:
        position = self._own_newlines(text, position)
        match = _REASONING[self._calls, not self._final].search(text, position)
        if match is None:
            self._writer.think(text[position:])
            return len(text)
        self._writer.think(text[position : match.start()])
        marker = m.found(match)
        if marker is None:
            return self._wait(text, match.start())
        if marker == m.END_THINK:
            self._newlines, self._state = 2, self._after_reasoning
        else:
            self._open_block()
        return match.end()

    def _in_content(self, text: str, position: int) -> int:
        position = self._own_newlines(text, position)
        match = _CONTENT[not self._final].search(text, position)
        if match is None:
            self._writer.say(text[position:])
            return len(text)
        self._writer.say(text[position : match.start()])
        marker = m.found(match)
        if marker is None:
            return self._wait(text, match.start())
        if marker == m.BLOCK:
            self._open_block()
        elif marker == m.THINK and self._writer.blank:
            self._newlines, self._state = 1, self._in_reasoning
        elif marker == m.THINK:
            self._writer.say(marker)
        return match.end()

    def _verbatim(self, text: str, position: int) -> int:
        self._writer.say(text[self._own_newlines(text, position) :])
        return len(text)

    def _in_block(self, text: str, position: int) -> int:
        if not self._stray:
            position = _SPACE.match(text, position).end()  # type: ignore[union-attr]  # it always matches
        match = _IN_BLOCK.search(text, position)
        stray = text[position : match.start() if match else len(text)]
        if stray:
            self._writer.say(stray)
            self._stray, self._bare_block = True, False
        if match is None:
            return len(text)
        marker = m.found(match)
        if marker is None:
            if self._final and m.INVOKE.startswith(match[0]) and match[0] != "<":
                self._cut_unnamed()
            return self._wait(text, match.start())
        if marker == m.INVOKE:
            return self._invoke(text, match)
        if self._stray and marker in (m.END_INVOKE, m.END_PARAMETER):
            self._writer.say(marker)  # of an invoke that was none
        elif marker in (m.BLOCK, m.END_BLOCK):
            self._stray = False
        if marker == m.END_BLOCK:
            self._bare_block, self._state = False, self._in_content
        return match.end()

    def _in_call(self, text: str, position: int) -> int:
        match = _IN_CALL.search(text, position)
        if match is None:
            return len(text)
        marker = m.found(match)
        if marker is None:
            return self._wait(text, match.start())
        if marker == m.PARAMETER:
            return self._parameter(text, match)
        if marker == m.INVOKE:
            return self._invoke(text, match)
        if marker == m.END_INVOKE:
            self._writer.end_call()
            self._state = self._in_block
        else:
            self._writer.cut_call()
            if marker == m.BLOCK:
                self._open_block()
            else:
                self._state = self._in_content
        return match.end()

    def _in_value(self, text: str, position: int) -> int:
        match = _IN_VALUE.search(text, position)
        if match is None:
            self._writer.data(text[position:])
            return len(text)
        self._writer.data(text[position : match.start()])
        marker = m.found(match)
        if marker is None:
            return self._wait(text, match.start())
        if marker == m.END_INVOKE and not self._final:
            self._state = self._in_withheld
            return match.start()
        self._writer.close_value()
        self._state = self._in_call
        return match.end() if marker == m.END_PARAMETER else match.start()

    def _in_withheld(self, text: str, position: int) -> int:
        """From an ``</invoke>`` inside a value on: it was data if ``</parameter>`` follows, else the end."""
        probe = self._tail + text[position:] if self._withheld else text
        start = 0 if self._withheld else position
        stop = probe.find(m.END_PARAMETER, start)
        if stop < 0:
            self._withheld.append(text[position:])
            self._tail = probe[start:][1 - len(m.END_PARAMETER) :]
            return len(text)
        left = len(probe) - stop - len(m.END_PARAMETER)
        if self._withheld:
            whole = "".join(self._withheld) + text[position:]
            data = whole[: len(whole) - len(probe) + stop]
        else:
            data = text[position:stop]
        self._withheld, self._tail = [], ""
        self._writer.data(data)
        self._writer.close_value()
        self._state = self._in_call
        return len(text) - left

    # ---- transitions

    def _wait(self, text: str, position: int) -> int:
        self._pending = text[position:]
        return _WAIT

    def _own_newlines(self, text: str, position: int) -> int:
        while self._newlines and position < len(text):
            if text[position] != "\n":
                self._newlines = 0
                break
            self._newlines -= 1
            position += 1
        return position

    def _open_block(self) -> None:
        self._bare_block, self._stray, self._state = True, False, self._in_block

    def _invoke(self, text: str, match: re.Match[str]) -> int:
        header = read_header(text, match.end())
        if header == "partial":
            if self._final and self._writer.call is None:
                self._cut_unnamed()
            return self._wait(text, match.start())
        if not isinstance(header, Header) or not header.name:
            if self._writer.call is None:
                self._writer.say(m.INVOKE)
                self._stray, self._bare_block = True, False
            return match.end()
        self._writer.open_call(header)
        self._bare_block, self._stray, self._state = False, False, self._in_call
        return header.end

    def _parameter(self, text: str, match: re.Match[str]) -> int:
        header = read_header(text, match.end())
        if header == "partial":
            return self._wait(text, match.start())
        if not isinstance(header, Header):
            return match.end()
        self._writer.open_value(header)
        self._state = self._in_value
        return header.end

    def _cut_unnamed(self) -> None:
        """The text ends within the header of an invoke."""
        self._bare_block = False
        self._writer.cut(Incomplete("call"))
