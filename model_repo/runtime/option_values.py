"""Reads the value of one option in whatever form clients send it: JSON, strings, numpy scalars, [1, 1] lists."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from mm2c_runtime.errors import RequestError
from mm2c_runtime.json_input import check_json, check_text, kind, load_json


def invalid(message: str) -> RequestError:
    return RequestError("INVALID_ARGUMENT", message)


def scalar(name: str, value: Any) -> Any:
    """The one value inside ``value``: Triton clients send [1] and [1, 1] tensors where a number is meant."""
    value = plain_numbers(value)
    while isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise invalid(f"{name}: one value is expected, got {len(value)}")
        value = plain_numbers(value[0])
    return text_of(name, value) if isinstance(value, bytes) else value


def plain_numbers(value: Any) -> Any:
    """Python's own types for a numpy scalar or array."""
    return value.tolist() if hasattr(value, "tolist") else value


def text_of(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"{name}: the bytes are not valid UTF-8") from None


def number(name: str, value: Any) -> float:
    value = scalar(name, value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise invalid(f'{name}: "{value}" is not a number') from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(f"{name}: {json.dumps(value, default=str)} is not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise invalid(f"{name}: {found} is not a finite number")
    return found


def integer(name: str, value: Any) -> int:
    value = scalar(name, value)
    if isinstance(value, str):
        try:
            return int(value)  # by way of float a 64-bit seed would lose bits
        except ValueError:
            pass
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = number(name, value)
    if found != int(found):
        raise invalid(f"{name}: {found:g} is not a whole number")
    return int(found)


def boolean(name: str, value: Any) -> bool:
    value = scalar(name, value)
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        return value.lower() in ("true", "1")
    if value in (0, 1):
        return bool(value)
    raise invalid(f"{name}: {json.dumps(value, default=str)} is neither true nor false")


def flatten(value: Any) -> Iterable[Any]:
    value = plain_numbers(value)
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from flatten(item)
    else:
        yield value


def strings(name: str, value: Any) -> tuple[str, ...]:
    """A string or a list of strings. Empty ones are dropped: TensorRT-LLM clients send "" for "none"."""
    found = []
    for item in flatten(value):
        text = text_of(name, item) if isinstance(item, bytes) else item
        if not isinstance(text, str):
            raise invalid(
                f"{name}: a string or a list of strings is expected, got {json.dumps(item, default=str)}"
            )
        check_text(name, text)
        if text:
            found.append(text)
    return tuple(found)


def few_and_short(strings: tuple[str, ...], count: int, length: int) -> bool:
    """At most ``count`` strings, none longer than ``length`` characters."""
    return len(strings) <= count and all(len(text) <= length for text in strings)


def stop_strings(name: str, value: Any) -> tuple[str, ...]:
    """As ``strings``; a lone string may be a JSON list of them, the only form some clients can send a list in."""
    found = strings(name, value)
    if len(found) == 1 and found[0].lstrip().startswith("["):
        try:
            listed = json.loads(found[0])
        except (ValueError, RecursionError):
            return found  # it begins with a bracket, no more
        if all(isinstance(item, str) for item in listed):
            return strings(name, listed)
    return found


def integers(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise invalid(f"{name}: a list of token ids is expected, got {value[:80]!r}") from None
    return tuple(integer(name, item) for item in flatten(value))


def logprobs_wanted(name: str, value: Any) -> int | None:
    value = scalar(name, value)
    if isinstance(value, bool) or value in ("true", "false", "True", "False"):
        return 0 if boolean(name, value) else None
    return integer(name, value)


def json_object(name: str, value: Any) -> dict[str, Any] | None:
    """An object, or its JSON; None for what clients send in place of none."""
    value = scalar(name, value)
    if isinstance(value, str):
        if value.strip() in ("", "null", "{}"):
            return None
        value = load_json(name, value)
    else:
        check_json(name, value)
    if not isinstance(value, dict):
        raise invalid(f"{name}: a JSON object is expected, got {kind(value)}")
    return value or None


def tool_wanted(name: str, value: Any) -> str | dict[str, Any] | None:
    """A word or name as it is, OpenAI's object or its JSON as an object; None where it is empty."""
    value = scalar(name, value)
    if isinstance(value, str):
        check_text(name, value)
        if not value.lstrip().startswith("{"):
            return value.strip() or None
    return json_object(name, value)


def text_or_json(name: str, value: Any) -> Any:
    """Text as it is, other JSON values too; None where it is empty."""
    value = scalar(name, value)
    if isinstance(value, str):
        check_text(name, value)
        return value if value.strip() else None
    check_json(name, value)
    return value
