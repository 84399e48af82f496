"""The little of SVG that the pictures need: text that is always well formed, shapes as paths, numbers without noise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

# What XML 1.0 cannot hold, escaped or not.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Point = tuple[float, float]


def text_of(value: str) -> str:
    """Character data: markup escaped, characters that XML does not have replaced."""
    return escape(_FORBIDDEN.sub("\ufffd", value))


def number(value: float) -> str:
    """With one digit behind the point, none where it is zero."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def element(name: str, content: str = "", **attributes: str | float) -> str:
    """``class_`` and ``text_anchor`` become class and text-anchor; ``content`` is markup."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        f"={quoteattr(_FORBIDDEN.sub(chr(0xFFFD), value) if isinstance(value, str) else number(value))}"
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def label(text: str, x: float, y: float, class_: str, anchor: str = "start") -> str:
    return element("text", text_of(text), x=x, y=y, class_=class_, text_anchor=anchor)


def path(points: Sequence[Point | str], **attributes: str | float) -> str:
    """Commands and the points that they take, in order."""
    data = " ".join(p if isinstance(p, str) else f"{number(p[0])} {number(p[1])}" for p in points)
    return element("path", "", d=data, **attributes)


def closed(points: Sequence[Point], **attributes: str | float) -> str:
    return path(["M", points[0], *(item for point in points[1:] for item in ("L", point)), "Z"], **attributes)


def octagon(x: float, y: float, width: float, height: float, cut: float = 9) -> str:
    right, bottom = x + width, y + height
    return closed(
        [
            (x + cut, y), (right - cut, y), (right, y + cut), (right, bottom - cut),
            (right - cut, bottom), (x + cut, bottom), (x, bottom - cut), (x, y + cut),
        ]
    )  # fmt: skip


def hexagon(x: float, y: float, width: float, height: float, point: float = 14) -> str:
    right, bottom, middle = x + width, y + height, y + height / 2
    return closed(
        [
            (x + point, y),
            (right - point, y),
            (right, middle),
            (right - point, bottom),
            (x + point, bottom),
            (x, middle),
        ]
    )


def cylinder(x: float, y: float, width: float, height: float, rim: float = 6) -> str:
    """The body with its lid."""
    arc = f"A {number(width / 2)} {number(rim)} 0 0"
    right, top, bottom = x + width, y + rim, y + height - rim
    body = path(["M", (x, top), f"{arc} 1", (right, top), "L", (right, bottom), f"{arc} 1", (x, bottom), "Z"])
    return body + path(["M", (x, top), f"{arc} 0", (right, top)], class_="lid")


def note(x: float, y: float, width: float, height: float, ear: float = 7) -> str:
    """A sheet with a folded corner."""
    right, bottom = x + width, y + height
    sheet = closed([(x, y), (right - ear, y), (right, y + ear), (right, bottom), (x, bottom)])
    return sheet + path(
        ["M", (right - ear, y), "L", (right - ear, y + ear), "L", (right, y + ear)], class_="ear"
    )


def rounded(x: float, y: float, width: float, height: float, radius: float) -> str:
    return element("rect", x=x, y=y, width=width, height=height, rx=radius)


def curve(points: Sequence[Point]) -> str:
    """A line through the points from top to bottom: straight where it only goes down, else an S."""
    written: list[Point | str] = ["M", points[0]]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        written += ["L", (x1, y1)] if abs(x0 - x1) < 0.5 else ["C", (x0, middle), (x1, middle), (x1, y1)]
    return path(written, class_="edge", marker_end="url(#arrow)")
