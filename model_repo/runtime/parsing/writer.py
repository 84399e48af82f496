"""Collects what the parser reads: as deltas for the stream and as the message at its end."""

from __future__ import annotations

import secrets

from mm2c_runtime.parsing.call import OpenCall
from mm2c_runtime.parsing.header import Header
from mm2c_runtime.parsing.message import Delta, DeltaKind, Incomplete, Message, ToolCall
from mm2c_runtime.parsing.tools import Tools


class MessageWriter:
    """The message being read. Texts of one kind that come between two ``take`` make one delta."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._deltas: list[Delta] = []
        self._kind: DeltaKind = "content"  # of the texts that make up the next delta
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._opened = 0
        self._incomplete: Incomplete | None = None
        self.call: OpenCall | None = None
        self.blank = True  # no content but space yet

    def think(self, text: str) -> None:
        self._add("reasoning", text)

    def say(self, text: str) -> None:
        if self.blank and text and not text.isspace():
            self.blank = False
        self._add("content", text)

    def open_call(self, header: Header) -> None:
        """Opens a call; one that is still open is cut."""
        self.cut_call()
        self._flush()
        name = self._tools.tool_name(header)
        self.call = OpenCall(self._opened, f"call_{secrets.token_hex(12)}", name)
        self._deltas.append(Delta("call", "", self._opened, self.call.id, name))
        self._opened += 1

    def open_value(self, header: Header) -> None:
        if self.call is not None:
            parameter = self._tools.parameter_name(self.call.name, header)
            self._add("arguments", self.call.open(parameter, self._tools.schema(self.call.name, parameter)))

    def data(self, text: str) -> None:
        """Adds to the open value."""
        if self.call is not None:
            self._add("arguments", self.call.data(text))

    def close_value(self) -> None:
        if self.call is not None:
            self._add("arguments", self.call.close())

    def end_call(self) -> None:
        if self.call is not None:
            self._add("arguments", self.call.end())
            self._calls.append(self.call.whole())
            self.call = None

    def cut_call(self) -> None:
        """Gives the open call, if there is one, up as incomplete."""
        if self.call is not None:
            self.cut(self.call.cut())
            self.call = None

    def cut(self, incomplete: Incomplete) -> None:
        self._incomplete = self._incomplete or incomplete

    def take(self) -> list[Delta]:
        """What was added since the last time."""
        self._flush()
        deltas, self._deltas = self._deltas, []
        return deltas

    def message(self) -> Message:
        return Message("".join(self._reasoning), "".join(self._content), list(self._calls), self._incomplete)

    def _add(self, kind: DeltaKind, text: str) -> None:
        if text:
            if kind != self._kind:
                self._flush()
                self._kind = kind
            self._texts.append(text)

    def _flush(self) -> None:
        if not self._texts:
            return
        text, self._texts = "".join(self._texts), []
        if self._kind == "arguments":
            self._deltas.append(Delta("arguments", text, self._opened - 1))
            return
        (self._reasoning if self._kind == "reasoning" else self._content).append(text)
        self._deltas.append(Delta(self._kind, text))
