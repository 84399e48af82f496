"""One case: a completion of our own with the structure of one that a peer's published test holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mm2c_runtime.parsing import Incomplete

STRING, INTEGER, NUMBER, BOOLEAN = ({"type": name} for name in ("string", "integer", "number", "boolean"))


@dataclass(frozen=True)
class Case:
    """``test`` names the peer's published tests; the expectation is ours, and ``differs`` says why theirs is
    another. ``pieces`` is the split that their test streams."""

    id: str
    test: str
    text: str
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    content: str = ""
    reasoning: str = ""
    tools: Any = None
    starts_in_reasoning: bool = False
    incomplete: Incomplete | None = None
    pieces: list[str] | None = None
    differs: str = ""


def streamed(id: str, test: str, pieces: list[str], *args: Any, **fields: Any) -> Case:
    """A case whose published test streams it in these pieces."""
    return Case(id, test, "".join(pieces), *args, pieces=pieces, **fields)


def one(name: str, /, **arguments: Any) -> list[tuple[str, dict[str, Any]]]:
    """A single expected call."""
    return [(name, arguments)]


# Reasons that several peers share.
VERBATIM = "content is kept to the letter, but for the newline that belongs to a block's opening marker"
TEXT_KEPT = "text after a call is content; the peer drops it"
UNDECLARED = "a value without a schema that is JSON is read as JSON; the peer keeps its text"
UNKNOWN = "a call of an unknown tool is kept, for the client to answer; the peer drops it"
CUT = "a cut call is reported as incomplete; the peer gives its markup to the client as content"
EXACT = "a declared string is the exact text; the peer trims it"
