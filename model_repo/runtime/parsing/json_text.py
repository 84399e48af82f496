"""JSON string text, written piece by piece: escaping is per character, so pieces concatenate."""

from __future__ import annotations

import re
from json.encoder import encode_basestring

_SURROGATE = re.compile("[\ud800-\udfff]")


def escape(text: str) -> str:
    """The inside of a JSON string for ``text``.

    Characters outside ASCII stay as they are, so that every piece is readable; a lone surrogate, which UTF-8
    cannot carry, becomes its ``\\uXXXX`` escape. ``escape(a) + escape(b) == escape(a + b)``.
    """
    escaped = encode_basestring(text)[1:-1]
    if escaped.isascii():
        return escaped
    return encodable(escaped)


def encodable(text: str) -> str:
    """JSON text that UTF-8 can carry: its lone surrogates, which only strings can hold, as escapes."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def quote(text: str) -> str:
    """``text`` as a whole JSON string."""
    return f'"{escape(text)}"'
