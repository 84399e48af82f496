"""The markers of MiniMax-M2's output and how to find them in text that is still arriving.

A marker owns the newlines the chat template writes around it, so that parsing undoes rendering exactly:
one newline before ``</think>`` and two after it, one after ``<think>``, one before ``<minimax:tool_call>``.
Every other newline belongs to the text.
"""

from __future__ import annotations

import re

THINK = "<think>"
END_THINK = "</think>"
BLOCK = "<minimax:tool_call>"
END_BLOCK = "</minimax:tool_call>"
INVOKE = "<invoke"
END_INVOKE = "</invoke>"
PARAMETER = "<parameter"
END_PARAMETER = "</parameter>"

# The longest `<invoke name="…">` or `<parameter name="…">` that is believed, in characters.
HEADER_LIMIT = 1024


def finder(*markers: str, newline_before: tuple[str, ...] = (), hold: bool = True) -> re.Pattern[str]:
    """A pattern whose leftmost match is a whole marker or, with ``hold``, a marker's beginning at the end of text.

    Group ``marker`` is the marker without the newline that it owns (for those in ``newline_before``); it is None
    where the match is only a beginning, which more text may or may not complete.
    """
    owned = "|".join(re.escape(marker) for marker in newline_before)
    plain = "|".join(re.escape(marker) for marker in markers)
    whole = [f"\n?(?P<owned>{owned})"] if owned else []
    whole += [f"(?P<plain>{plain})"] if plain else []
    if hold:
        spelled = [*markers, *newline_before, *("\n" + marker for marker in newline_before)]
        beginnings = sorted({text[:end] for text in spelled for end in range(1, len(text))}, key=len)
        whole.append(f"(?:{'|'.join(map(re.escape, beginnings))})\\Z")
    return re.compile("|".join(whole))


def found(match: re.Match[str]) -> str | None:
    """The marker of a match of ``finder``'s pattern, None for a mere beginning."""
    return match[match.lastgroup] if match.lastgroup else None
