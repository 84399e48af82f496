"""How a refusal of a key is worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mm2c.errors import UserError


def refuse(path: Path, key: str, value: Any, why: str, remedy: str = "") -> UserError:
    """``config.json has sliding_window = 4096, but …``; raise what this returns."""
    remedy = remedy or f"correct {key} in {path.name}, or copy the file of the release again"
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "…"
    return UserError(f"{path.name} has {key} = {shown}: {why}", where=str(path), remedy=remedy)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean "minimax_m2"?``, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else ""
