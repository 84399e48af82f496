"""How long a text becomes, known before it is made: methods, filters and operators that can make a long one
of short ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from jinja2.exceptions import SecurityError

from mm2c_runtime.chat.budget import Budget

MAX_WIDTH = 10_000_000  # characters that one padding, repetition or format makes
MAX_BITS = 65_536  # of a whole number
_WIDE_FORMAT = re.compile(r"%[^%a-zA-Z]*\d{8}|\{[^}]*\d{8}")
_FIELD = re.compile(r"[%{]")


def check_width(*widths: Any) -> None:
    """Refuses to pad to more than MAX_WIDTH."""
    if any(isinstance(width, int) and width > MAX_WIDTH for width in widths):
        raise SecurityError(f"the chat template makes a text wider than {MAX_WIDTH}")


def take_format(budget: Budget, text: Any, values: Iterable[Any]) -> None:
    """``text`` filled in with ``values``: every field may show the longest of them."""
    if not isinstance(text, (str, bytes)):
        return
    fields = _FIELD.findall(text if isinstance(text, str) else text.decode("latin-1"))
    if isinstance(text, str) and _WIDE_FORMAT.search(text):
        raise SecurityError(f"the chat template makes a text wider than {MAX_WIDTH}")
    given = list(values)
    check_width(*given)
    for value in given:
        budget.written(value)
    longest = max((len(value) for value in given if isinstance(value, (str, bytes))), default=0)
    budget.take(len(text) + len(fields) * longest)


def take_replace(budget: Budget, text: Any, old: Any, new: Any, count: Any = -1) -> None:
    found = text.count(old)
    if isinstance(count, int) and count >= 0:
        found = min(found, count)
    budget.take(len(text) + found * max(len(new) - len(old), 0))


def take_join(budget: Budget, separator: Any, parts: list[Any]) -> None:
    for part in parts:
        budget.written(part)
    budget.take(len(separator) * len(parts))


def measured_call(
    budget: Budget, text: Any, method: str, args: tuple[Any, ...], kwargs: Any
) -> tuple[Any, ...]:
    """Takes for ``text.method(*args)`` of a str or bytes; the arguments to call it with."""
    if method == "join" and args:
        args = ([budget.shallow(part) for part in args[0]],)
        take_join(budget, text, args[0])
    elif method == "replace" and len(args) >= 2:
        take_replace(budget, text, *args[:2], *args[2:3], *kwargs.values())
    elif method == "translate" and args:
        table = args[0] if isinstance(args[0], dict) else {}
        longest = max((len(to) for to in table.values() if isinstance(to, (str, bytes))), default=1)
        budget.take(len(text) * longest)
    elif method == "expandtabs":
        size = next((one for one in (*args, *kwargs.values()) if isinstance(one, int)), 8)
        budget.take(len(text) + text.count("\t" if isinstance(text, str) else b"\t") * size)
    else:
        widths = [one for one in (*args, *kwargs.values()) if isinstance(one, int)]
        check_width(*widths)
        budget.take(max([len(text), *widths]))
    return args


def take_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Takes for ``left operator right``, where that makes a text, a list or a huge number."""
    text = (str, bytes, list, tuple)
    if operator == "%":
        values = right.values() if isinstance(right, dict) else right
        take_format(budget, left, values if isinstance(right, (tuple, dict)) else (right,))
    elif operator == "+" and isinstance(left, text) and isinstance(right, text):
        budget.take(len(left) + len(right))
    elif operator == "*":
        for one, count in ((left, right), (right, left)):
            if isinstance(one, text) and isinstance(count, int):
                check_width(len(one) * count)
                budget.take(len(one) * count)
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise SecurityError(f"the chat template makes a number of more than {MAX_BITS} bits")


# Filters: what each takes for its value and arguments, before it runs. Those that are not here make no text, or
# none longer than they were given.


def _replace(budget: Budget, value: Any, old: Any, new: Any, count: Any = None) -> None:
    if count is None:
        count = -1
    take_replace(budget, str(value), str(old), str(new), count)


def _indent(budget: Budget, value: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    check_width(width)
    budget.take((str(value).count("\n") + 1) * (width if isinstance(width, int) else len(width)))


def _width(budget: Budget, value: Any, *widths: Any, **named: Any) -> None:
    check_width(*widths, *named.values())
    budget.take(sum(one for one in (*widths, *named.values()) if isinstance(one, int)))


def _wrap(budget: Budget, value: Any, *args: Any, **named: Any) -> None:
    breaks = [one for one in (*args, *named.values()) if isinstance(one, str)]
    budget.take(len(str(value)) * max((len(one) for one in breaks), default=1))


def _format(budget: Budget, value: Any, *args: Any, **named: Any) -> None:
    take_format(budget, value, (*args, *named.values()))


def _sum(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise SecurityError("the filter sum adds numbers only")


def _nothing(budget: Budget, value: Any, *_: Any, **__: Any) -> None:
    return


FILTERS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("batch", "center", "slice", "truncate"), _width),
    **dict.fromkeys(("urlize", "wordwrap"), _wrap),
    **dict.fromkeys(
        (
            "capitalize", "e", "escape", "forceescape", "lower", "pprint", "string", "striptags", "title", "trim",
            "upper", "urlencode", "wordcount", "xmlattr",
        ),
        _nothing,
    ),
    "format": _format,
    "indent": _indent,
    "replace": _replace,
    "sum": _sum,
}  # fmt: skip
