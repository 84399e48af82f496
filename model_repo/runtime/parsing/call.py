"""The call that is being read: its argument text, piece by piece as it streams, and whole at its end."""

from __future__ import annotations

from mm2c_runtime.parsing.json_text import escape, quote
from mm2c_runtime.parsing.message import Incomplete, ToolCall
from mm2c_runtime.parsing.schema import ParameterSchema


class OpenCall:
    """Turns parameters into the text of one JSON object.

    Every method returns the argument text that it adds. In the stream a repeated parameter is a repeated key,
    of which JSON readers take the last; ``whole`` writes the last alone.
    """

    def __init__(self, index: int, call_id: str, name: str) -> None:
        self.index, self.id, self.name = index, call_id, name
        self._values: dict[str, str] = {}
        self._streamed: list[str] = []
        self._parameter: str | None = None
        self._schema: ParameterSchema | None = None
        self._pieces: list[str] = []
        self.data = self._json

    def open(self, parameter: str, schema: ParameterSchema) -> str:
        """Begins the value of ``parameter``."""
        self._parameter, self._schema, self._pieces = parameter, schema, []
        added = f"{', ' if self._streamed else '{'}{quote(parameter)}: "
        if schema.is_text:
            self.data = self._text
            added += '"'
        else:
            self.data = self._json
        self._streamed.append(added)
        return added

    def _text(self, text: str) -> str:
        """Adds to a string value: it streams as it grows."""
        added = escape(text)
        self._pieces.append(added)
        return added

    def _json(self, text: str) -> str:
        """Adds to any other value: what it is shows at its end."""
        self._pieces.append(text)
        return ""

    def close(self) -> str:
        """Ends the open value."""
        assert self._parameter is not None
        assert self._schema is not None
        inside = "".join(self._pieces)
        if self._schema.is_text:
            value, added = f'"{inside}"', '"'
            self._streamed.append(inside)
        else:
            value = added = self._schema.read(inside)
        self._streamed.append(added)
        self._values[self._parameter] = value
        self._parameter, self._schema, self._pieces = None, None, []
        return added

    def end(self) -> str:
        """Ends the call."""
        return "}" if self._streamed else "{}"

    def whole(self) -> ToolCall:
        """The call, every parameter of which is closed."""
        arguments = ", ".join(f"{quote(name)}: {value}" for name, value in self._values.items())
        return ToolCall(self.id, self.name, f"{{{arguments}}}", self.index)

    def cut(self) -> Incomplete:
        """What is known of a call that was cut."""
        streamed = self._streamed
        if self._schema is not None and self._schema.is_text:
            streamed = streamed + self._pieces
        return Incomplete("call", self.index, self.name, self._parameter, "".join(streamed))
