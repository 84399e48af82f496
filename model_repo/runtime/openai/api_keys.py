"""API keys as text: several are separated by commas or lines."""

from __future__ import annotations

import re

VARIABLE = "MM2C_API_KEY"


def keys_of(text: str) -> tuple[bytes, ...]:
    """The keys, none where there is only space. Raises ValueError for one that no HTTP header can carry."""
    keys = [key.strip() for key in re.split(r"[,\r\n]", text)]
    for key in keys:
        if not all("!" <= character <= "~" for character in key):
            raise ValueError("an API key has a space in it, or a character outside ASCII")
    return tuple(key.encode() for key in keys if key)
