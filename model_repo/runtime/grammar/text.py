"""Regular expressions and literals of text that must not hold certain markers, in Lark's spelling.

Every marker begins with ``<`` and holds no other, so text without them is a plain regular expression. A
negation would say the same, but costs llguidance orders of magnitude more while masking.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from mm2c_runtime.errors import RequestError

# What a JSON string may not hold as it is, and the escapes that stand for it; surrogates come in pairs.
_NOT_IN_JSON_STRING = r"\"\\\x00-\x1f"
_ESCAPE = (
    r"\\(?:[\"\\\/bfnrt]|u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}"
    r"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
# Keys have one spelling each, so that an escape cannot disguise a key that is there already.
_KEY_ESCAPE = r"\\(?:[\"\\bfnrt]|u00[01][0-9a-f])"


def literal(text: str) -> str:
    """``text`` as a Lark string."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError("INVALID_ARGUMENT", f"{json.dumps(text)[:80]} is not Unicode text") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def escaped(text: str) -> str:
    """``text`` as itself in a regular expression between slashes, outside and inside of brackets."""
    return "".join(f"\\x{{{ord(c):x}}}" if not (c.isascii() and c.isalnum()) else c for c in text)


def without(markers: Iterable[str]) -> str:
    """Text that holds no marker: a run free of ``<`` and, for each ``<``, a run that completes none."""
    trie: dict[str, Any] = {}
    for marker in markers:
        node = trie
        for character in marker[1:]:
            node = node.setdefault(character, {})

    def incomplete(node: dict[str, Any]) -> str:
        choices = [f"[^<{escaped(''.join(node))}][^<]*"]
        choices += [escaped(c) + incomplete(after) for c, after in node.items() if after]
        return f"(?:{'|'.join(choices)})?"

    return f"[^<]*(?:<{incomplete(trie)})*"


def json_characters(low: int = 0, high: int | None = None, *, less_than: bool = True) -> str:
    """So many characters as JSON strings spell them, of which ``<`` may be one or not."""
    excluded = _NOT_IN_JSON_STRING if less_than else "<" + _NOT_IN_JSON_STRING
    return f"(?:[^{excluded}]|{_ESCAPE}){repeat(low, high)}"


def json_key() -> str:
    """A key, with its quotes, as JSON writers spell it."""
    return f'"(?:[^{_NOT_IN_JSON_STRING}]|{_KEY_ESCAPE})*"'


def characters(low: int, high: int | None, *, less_than: bool) -> str:
    """Text of so many characters, of which ``<`` may be one or not."""
    return ("(?s:.)" if less_than else "[^<]") + repeat(low, high)


def repeat(low: int, high: int | None) -> str:
    """How often what precedes it may come."""
    return "*" if (low, high) == (0, None) else f"{{{low},{'' if high is None else high}}}"


_BRACKETED = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_"}


def searched(pattern: str) -> str:
    """A regular expression for the texts in which JSON schema's ``pattern`` is found somewhere.

    Raises RequestError for what llguidance has no form for: anchors within, look-around, back-references.
    """
    choices: list[list[str]] = [[]]
    depth = 0
    for piece in _BRACKETED.findall(pattern):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and depth == 0:
            choices.append([])
        else:
            choices[-1].append(piece)
    return "|".join(_found(choice, pattern) for choice in choices)


def _found(pieces: list[str], pattern: str) -> str:
    start, end = pieces[:1] == ["^"], pieces[-1:] == ["$"]
    inner = pieces[start : len(pieces) - end]
    text = "".join(inner)
    if "^" in inner or "$" in inner or re.search(r"\((?:\?[=!<P])|(?<!\\)(?:\\\\)*\\[1-9bBkZA]", text):
        raise RequestError(
            "INVALID_ARGUMENT",
            f"pattern {json.dumps(pattern)[:120]} cannot be enforced: anchors are supported at the ends only, "
            "look-around and back-references not at all",
        )
    body = "".join(_spelled(piece) for piece in inner)
    anything = "(?s:.*)"
    return f"{'' if start else anything}(?:{body}){'' if end else anything}"


def _spelled(piece: str) -> str:
    """ASCII classes, as JSON schema's dialect means them, and no bare slash or line end."""
    bracketed = piece.startswith("[") and len(piece) > 1
    if not bracketed and len(piece) == 2 and piece[1].lower() in _CLASSES:
        return f"[{'^' if piece[1].isupper() else ''}{_CLASSES[piece[1].lower()]}]"
    if bracketed:
        piece = re.sub(r"\\([dw])", lambda match: _CLASSES[match[1]], piece)
    piece = re.sub(r"\\u([0-9a-fA-F]{4})", r"\\x{\1}", piece)
    piece = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", piece)
    return "".join(f"\\x{{{ord(c):x}}}" if c < " " else c for c in piece)
