"""JSON and text of strangers: what cannot be read, carried on or tokenised is refused where it comes in."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from mm2c_runtime.errors import RequestError

MAX_DEPTH = (
    100  # nesting of lists and objects; whatever recurses over them later stays far from Python's limit
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def load_json(name: str, text: str) -> Any:
    """The value of JSON ``text``, checked. Raises RequestError INVALID_ARGUMENT."""
    try:
        value = json.loads(text, parse_constant=_not_json)
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as error:
        raise RequestError("INVALID_ARGUMENT", f"{name}: not valid JSON ({error})") from None
    check_json(name, value)
    return value


def check_json(name: str, value: Any) -> None:
    """Refuses, naming the place, what is nested too deeply, a key that is no string, and what is no text or
    number of JSON."""
    level = [(name, value)]
    for _ in range(MAX_DEPTH + 1):
        inner: list[tuple[str, Any]] = []
        for place, item in level:
            if isinstance(item, str):
                check_text(place, item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise RequestError("INVALID_ARGUMENT", f"{place}: {item} is not a JSON value")
            elif isinstance(item, dict):
                for key in item:
                    if not isinstance(key, str):
                        raise RequestError("INVALID_ARGUMENT", f"{place}: the key {key!r} is not a string")
                    check_text(f"{place}: a key", key)
                inner += [(f"{place}.{key}", below) for key, below in item.items()]
            elif isinstance(item, (list, tuple)):
                inner += [(f"{place}[{index}]", below) for index, below in enumerate(item)]
        if not inner:
            return
        level = inner
    raise _too_deep(name)


def check_text(name: str, text: str) -> None:
    """Refuses a lone surrogate: half of a UTF-16 pair is no character, and UTF-8 cannot carry it."""
    if text.isascii():
        return
    found = _SURROGATE.search(text)
    if found is not None:
        raise RequestError(
            "INVALID_ARGUMENT",
            f"{name}: has a lone surrogate, U+{ord(found[0]):04X}, at character {found.start()}, "
            "which is not text; send both halves of the pair, or U+FFFD",
        )


def kind(value: Any) -> str:
    """What ``value`` is, in JSON's words."""
    names = {dict: "an object", list: "a list", tuple: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _too_deep(name: str) -> RequestError:
    return RequestError("INVALID_ARGUMENT", f"{name}: is nested more than {MAX_DEPTH} levels deep")
