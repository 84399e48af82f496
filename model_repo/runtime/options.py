"""Generation options under their TensorRT-LLM and vLLM-backend names: one table, one value, teaching
refusals."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mm2c_runtime.errors import RequestError

MAX_LOGPROBS = 20
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asked for; None where the bundle's generation config or the context decides."""

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    end_id: int | None = None
    ignore_eos: bool = False
    stream: bool = False
    logprobs: int | None = None  # alternatives a token; 0 is the chosen token's own
    echo: bool = False
    parse: bool | None = None
    timeout: float | None = None  # seconds from submission
    priority: int = 0  # lower is served earlier


def invalid(message: str) -> RequestError:
    return RequestError("INVALID_ARGUMENT", message)


def scalar(name: str, value: Any) -> Any:
    """The one value inside ``value``: Triton clients send [1] and [1, 1] tensors where a number is meant."""
    while isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise invalid(f"{name}: one value is expected, got {len(value)}")
        value = value[0]
    if hasattr(value, "item"):  # numpy scalar
        value = value.item()
    return text_of(name, value) if isinstance(value, bytes) else value


def text_of(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"{name}: the bytes are not valid UTF-8") from None


def _number(name: str, value: Any) -> float:
    value = scalar(name, value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise invalid(f'{name}: "{value}" is not a number') from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(f"{name}: {json.dumps(value, default=str)} is not a number")
    if not math.isfinite(value):
        raise invalid(f"{name}: {value} is not a finite number")
    return float(value)


def _integer(name: str, value: Any) -> int:
    value = scalar(name, value)
    if isinstance(value, str):
        try:
            return int(value)  # by way of float a 64-bit seed would lose bits
        except ValueError:
            pass
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _number(name, value)
    if number != int(number):
        raise invalid(f"{name}: {number:g} is not a whole number")
    return int(number)


def _boolean(name: str, value: Any) -> bool:
    value = scalar(name, value)
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        return value.lower() in ("true", "1")
    if value in (0, 1):
        return bool(value)
    raise invalid(f"{name}: {json.dumps(value, default=str)} is neither true nor false")


def _flatten(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten(item)
    else:
        yield value.item() if hasattr(value, "item") else value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    """A string or a list of strings. Empty ones are dropped: TensorRT-LLM clients send "" for "none"."""
    found = []
    for item in _flatten(value):
        text = text_of(name, item) if isinstance(item, bytes) else item
        if not isinstance(text, str):
            raise invalid(
                f"{name}: a string or a list of strings is expected, got {json.dumps(item, default=str)}"
            )
        if text:
            found.append(text)
    return tuple(found)


def _integers(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)):
        try:
            value = json.loads(value)
        except ValueError:
            raise invalid(f"{name}: a list of token ids is expected, got {value!r}") from None
    return tuple(_integer(name, item) for item in _flatten(value))


def _logprobs(name: str, value: Any) -> int | None:
    value = scalar(name, value)
    if isinstance(value, bool) or value in ("true", "false", "True", "False"):
        return 0 if _boolean(name, value) else None
    return _integer(name, value)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one option is read, which values are legal, and the sentence that says so."""

    field: str
    read: Callable[[str, Any], Any]
    legal: Callable[[Any], bool] = lambda _: True
    range: str = ""


_RULES = (
    _Rule("max_tokens", _integer, lambda v: v >= 1, "at least 1"),
    _Rule("min_tokens", _integer, lambda v: v >= 0, "at least 0"),
    _Rule("temperature", _number, lambda v: v >= 0, "at least 0 (0 is greedy)"),
    _Rule("top_k", _integer, lambda v: v >= -1, "at least 1, or 0 or -1 to switch it off"),
    _Rule("top_p", _number, lambda v: 0 < v <= 1, "greater than 0 and at most 1"),
    _Rule("min_p", _number, lambda v: 0 <= v <= 1, "from 0 to 1"),
    _Rule("repetition_penalty", _number, lambda v: v > 0, "greater than 0"),
    _Rule("presence_penalty", _number, lambda v: -2 <= v <= 2, "from -2 to 2"),
    _Rule("frequency_penalty", _number, lambda v: -2 <= v <= 2, "from -2 to 2"),
    _Rule("seed", _integer, lambda v: 0 <= v <= MAX_SEED, f"from 0 to {MAX_SEED}"),
    _Rule("stop", _strings),
    _Rule("stop_token_ids", _integers, lambda v: all(i >= 0 for i in v), "token ids of at least 0"),
    _Rule("bad_words", _strings),
    _Rule("end_id", _integer, lambda v: v >= -1, "a token id, or -1 for none"),
    _Rule("ignore_eos", _boolean),
    _Rule("stream", _boolean),
    _Rule(
        "logprobs",
        _logprobs,
        lambda v: v is None or 0 <= v <= MAX_LOGPROBS,
        f"from 0 to {MAX_LOGPROBS} alternatives",
    ),
    _Rule("parse", _boolean),
    _Rule("timeout", _number, lambda v: v >= 0, "seconds greater than 0, or 0 for none"),
    _Rule("priority", _integer),
)
_RULE = {rule.field: rule for rule in _RULES}

_ALIASES = {
    "min_length": "min_tokens",
    "random_seed": "seed",
    "stop_words": "stop",
    "exclude_input_in_output": "echo",
    "return_log_probs": "logprobs",
}

# Accepted and without effect: every response carries these outputs, and rows are never padded.
_WITHOUT_EFFECT = {
    "pad_id": _integer,
    "return_finish_reason": _boolean,
    "return_num_input_tokens": _boolean,
    "return_num_output_tokens": _boolean,
}

# Accepted with the one value that describes what this engine does, refused with any other.
_FIXED: dict[str, tuple[Callable[[str, Any], Any], Any]] = {
    "n": (_integer, 1),
    "best_of": (_integer, 1),
    "beam_width": (_integer, 1),
    "num_return_sequences": (_integer, 1),
    "use_beam_search": (_boolean, False),
    "length_penalty": (_number, 1.0),
    "skip_special_tokens": (_boolean, True),
    "spaces_between_special_tokens": (_boolean, True),
    "include_stop_str_in_output": (_boolean, False),
}

NAMES = tuple(sorted({*_RULE, *_ALIASES, *_WITHOUT_EFFECT, *_FIXED, "sampling_parameters"}))


def parse_options(fields: Mapping[str, Any], *, other_names: Iterable[str] = ()) -> Options:
    """Reads the options among ``fields`` (every key must be one). ``other_names`` only feed "did you mean".

    Raises RequestError INVALID_ARGUMENT naming the option, its value and the legal range.
    """
    given: dict[str, tuple[str, Any]] = {}
    for name, value in _merged(fields).items():
        if name in _WITHOUT_EFFECT:
            _WITHOUT_EFFECT[name](name, value)
        elif name in _FIXED:
            read, only = _FIXED[name]
            if (found := read(name, value)) != only:
                raise invalid(f"{name}: {json.dumps(found)} is not supported, only {json.dumps(only)}")
        else:
            field, result = _read(name, value, other_names)
            if field in given and given[field][1] != result:
                raise invalid(
                    f"{given[field][0]} and {name} are the same option and were given different values"
                )
            given[field] = (name, result)
    options = Options(**{field: value for field, (_, value) in given.items()})
    if options.max_tokens is not None and options.min_tokens > options.max_tokens:
        raise invalid(f"min_tokens: {options.min_tokens} is greater than max_tokens {options.max_tokens}")
    return options


def _read(name: str, value: Any, other_names: Iterable[str]) -> tuple[str, Any]:
    field = _ALIASES.get(name, name)
    if name == "exclude_input_in_output":
        return field, not _boolean(name, value)
    if field not in _RULE:
        close = difflib.get_close_matches(name, [*NAMES, *other_names], n=1)
        raise invalid(f'unknown option "{name}"' + (f'; did you mean "{close[0]}"?' if close else ""))
    if name == "return_log_probs":
        return field, 0 if _boolean(name, value) else None
    rule = _RULE[field]
    result = rule.read(name, value)
    if not rule.legal(result):
        shown = list(result) if isinstance(result, tuple) else result
        raise invalid(f"{name}: {json.dumps(shown)} is not allowed; it must be {rule.range}")
    if field == "top_k":
        return field, max(result, 0)
    if field == "end_id":
        return field, None if result < 0 else result
    if field == "timeout":
        return field, result or None
    return field, result


def _merged(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with the vLLM backend's ``sampling_parameters`` (a JSON object in a string) spread out."""
    merged = {name: value for name, value in fields.items() if value is not None}
    raw = merged.pop("sampling_parameters", None)
    if raw is None:
        return merged
    raw = scalar("sampling_parameters", raw)
    if isinstance(raw, str):
        if not raw.strip():
            return merged
        try:
            raw = json.loads(raw)
        except ValueError as error:
            raise invalid(f"sampling_parameters: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise invalid("sampling_parameters: a JSON object is expected")
    for name, value in raw.items():
        if name == "sampling_parameters":
            raise invalid("sampling_parameters: cannot be nested")
        if value is None:
            continue
        if name in merged and merged[name] != value:
            raise invalid(f"{name}: given both by itself and in sampling_parameters, with different values")
        merged[name] = value
    return merged
