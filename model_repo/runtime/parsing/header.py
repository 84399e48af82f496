"""Reads ` name="f">`, the rest of an `<invoke` or `<parameter` marker, from text that is still arriving."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from mm2c_runtime.parsing.markers import HEADER_LIMIT

_NAME = re.compile(r"\s+name\s*=\s*")
# Some completions repeat more of the schema in the tag: `name="f" description="…"`.
_ATTRIBUTE = r"""\s+[\w.:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>=]+)"""
_ATTRIBUTED = re.compile(
    rf"""(?:"(?P<double>[^"<\n]+)"|'(?P<single>[^'<\n]+)'|(?P<plain>[^\s"'<>=]+))(?:{_ATTRIBUTE})+\s*"""
)
_NAME_BEGINNING = re.compile(r"(?:\Z|\s+(?:\Z|n\Z|na\Z|nam\Z|name\s*(?:\Z|=)))")
# A quoted name ends at the first quote that `>` follows, so a name may hold quotes and `>`, as rendering
# leaves them.
# A line end or `<` before that says that the closing quote was forgotten.
_QUOTED_END = {quote: re.compile(rf"(?P<close>{quote}[ \t]*(?P<gt>>|\Z))|[\n<]") for quote in ('"', "'")}


class Header(NamedTuple):
    """A whole header: the name, the position after its ``>``, and, where what was read as the name looks like
    a name with more attributes after it, that name alone."""

    name: str
    end: int
    bare: str | None = None


def read_header(text: str, start: int) -> Header | Literal["partial", "malformed"]:
    """Reads the header whose tag ends at ``start``; ``partial`` says that only more text can decide.

    An answer other than ``partial`` does not depend on how much text came after it.
    """
    end = min(len(text), start + HEADER_LIMIT)
    undecided: Literal["partial", "malformed"] = (
        "partial" if len(text) < start + HEADER_LIMIT else "malformed"
    )
    if undecided == "partial" and not _NAME_BEGINNING.match(text, start):
        return "malformed"
    first_close = text.find(">", start, end)
    if first_close < 0:
        return undecided
    match = _NAME.match(text, start, first_close)
    if match is None or match.end() == first_close:
        return "malformed"
    begin = match.end()
    attributed = _ATTRIBUTED.fullmatch(text, begin, first_close)
    if attributed is not None:
        return Header(_unquoted(text[begin:first_close]), first_close + 1, _first(attributed))
    quoted_end = _QUOTED_END.get(text[begin])
    if quoted_end is not None:
        stop = quoted_end.search(text, begin + 1, end)
        if stop is not None and stop["gt"]:
            attributed = _ATTRIBUTED.fullmatch(text, begin, stop.end() - 1)
            bare = None if attributed is None else _first(attributed)
            return Header(text[begin + 1 : stop.start()], stop.end(), bare)
        if undecided == "partial" and (stop is None or stop["close"]):
            return "partial"
    return Header(_unquoted(text[begin:first_close]), first_close + 1)


def _unquoted(name: str) -> str:
    return name.strip().strip("\"'")


def _first(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None)
