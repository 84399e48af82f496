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


_WHOLE = frozenset({THINK, END_THINK, BLOCK, END_BLOCK, INVOKE, END_INVOKE, PARAMETER, END_PARAMETER})


def finder(*markers: str, newline_before: tuple[str, ...] = (), hold: bool = True) -> re.Pattern[str]:
    """A pattern whose leftmost match is a whole marker or, with ``hold``, a marker's beginning at the end of
    text.

    The markers of ``newline_before`` take a newline in front of them along. ``found`` tells the matches
    apart.
    """
    spelled = [*("\n" + marker for marker in newline_before), *newline_before, *markers]
    choices = [re.escape(text) for text in spelled]
    if hold:
        beginnings = {text[:end] for text in spelled for end in range(1, len(text))}
        choices += [re.escape(text) + r"\Z" for text in sorted(beginnings)]
    # every choice begins with a literal, so that `re` skips from one possible first character to the next
    return re.compile("|".join(choices))


def found(match: re.Match[str]) -> str | None:
    """The marker, without its newline, that a match of ``finder``'s pattern is; None for a mere beginning."""
    marker = match[0].removeprefix("\n")
    return marker if marker in _WHOLE else None
