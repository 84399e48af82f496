"""Sizes as people write them, in and out."""

from __future__ import annotations

import re
from decimal import Decimal

from mm2c.errors import UserError

_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "ki": 2**10, "kib": 2**10, "mi": 2**20, "mib": 2**20, "gi": 2**30, "gib": 2**30, "ti": 2**40, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_LEAST = 2**20  # bytes: less is no memory of a GPU, but a unit that was forgotten


def parse_size(text: str, where: str = "--memory") -> int:
    """Bytes of ``96GiB`` (binary), ``96GB`` or ``80G`` (decimal, as on a card's box). Raises UserError."""
    found = _SIZE.fullmatch(text)
    unit = _UNITS.get(found[2].lower()) if found else None
    size = int(Decimal(found[1]) * unit) if found and unit else 0
    if size < _LEAST:
        why = "it has no unit" if found and not found[2] and size else "expected a number and a unit"
        raise UserError(
            f"{text!r} is no memory size: {why}",
            where=where,
            remedy="96GiB is 96 · 2^30 bytes; 96GB and 96G are 96 · 10^9",
        )
    return size


def gib(size: float) -> str:
    """``23.4 GiB``; with sign where negative."""
    return f"{size / 2**30:,.1f} GiB"


def gb(size: float) -> str:
    """``23.4 GB``, decimal."""
    return f"{size / 1e9:,.1f} GB"


def tokens(count: float) -> str:
    """``408 K``, ``3.48 M``: three digits are enough to compare by."""
    if count < 10_000:
        return f"{count:,.0f}"
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} K"
