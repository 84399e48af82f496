"""What a completion says, as values: the whole message, and the deltas that build it up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DeltaKind = Literal["reasoning", "content", "call", "arguments"]


@dataclass(frozen=True)
class Delta:
    """One addition to the message.

    ``reasoning`` and ``content`` add ``text``. ``call`` opens tool call ``index`` with ``id`` and ``name``;
    ``arguments`` adds ``text`` to the JSON argument text of call ``index``. The argument text of a call that
    was cut never closes its outermost brace, so it cannot be mistaken for a whole one.
    """

    kind: DeltaKind
    text: str = ""
    index: int | None = None
    id: str | None = field(default=None, compare=False)
    name: str | None = None


@dataclass(frozen=True)
class ToolCall:
    """A whole call. ``arguments`` is the text of a JSON object; ``index`` counts cut calls too."""

    id: str = field(compare=False)
    name: str
    arguments: str
    index: int = 0


@dataclass(frozen=True)
class Incomplete:
    """What was cut. Never to be executed.

    ``block``: ``<minimax:tool_call>`` opened and nothing whole followed. ``call``: an invoke without its end;
    ``index`` and ``name`` are those of its ``call`` delta (None when even its name was cut), ``parameter`` is
    the parameter whose value was open, ``arguments`` the JSON text streamed so far.
    """

    what: Literal["block", "call"]
    index: int | None = None
    name: str | None = None
    parameter: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class Message:
    """A parsed completion. ``tool_calls`` holds whole calls only; ``incomplete`` is what was cut first."""

    reasoning: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    incomplete: Incomplete | None = None
