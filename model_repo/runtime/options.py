"""Generation options under their TensorRT-LLM and vLLM-backend names: one table, one value, teaching
refusals."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mm2c_runtime.json_input import check_json, load_json
from mm2c_runtime.option_names import ALIASES, LAYOUT, NEUTRAL, accept_neutral
from mm2c_runtime.option_values import (
    boolean,
    few_and_short,
    integer,
    integers,
    invalid,
    json_object,
    logprobs_wanted,
    number,
    scalar,
    stop_strings,
    strings,
    text_or_json,
    tool_wanted,
)

MAX_LOGPROBS = 20
MAX_SHOWN = 200  # characters of a value in the message that refuses it
MAX_SEED = 2**64 - 1
NO_END = -1  # the ``end_id`` of a request that no end token shall end


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asked for; None where the bundle's generation config or the context decides."""

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None  # after top_k and top_p, as in transformers; vLLM's comes before them
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    end_id: int | None = None  # in place of the bundle's end tokens; NO_END: none
    ignore_eos: bool = False
    stream: bool = False
    logprobs: int | None = None  # alternatives a token; 0 is the chosen token's own
    echo: bool = False
    parse: bool | None = None
    timeout: float | None = None  # seconds from submission
    priority: int = 0  # lower is served earlier
    tool_choice: str | dict[str, Any] | None = None  # none, auto, required, or the tool that must be called
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_decoding_guide_type: str | None = None
    guided_decoding_guide: Any = None
    skip_reasoning: bool = False  # the answer begins behind the reasoning that the prompt would have opened


@dataclass(frozen=True, slots=True)
class Rule:
    """How one option is read, which values are legal, and the sentence that says so."""

    field: str
    read: Callable[[str, Any], Any]
    legal: Callable[[Any], bool] = lambda _: True
    range: str = ""


_RULES = (
    Rule("max_tokens", integer, lambda v: v >= 1, "at least 1"),
    Rule("min_tokens", integer, lambda v: v >= 0, "at least 0"),
    Rule("temperature", number, lambda v: v >= 0, "at least 0 (0 is greedy)"),
    Rule("top_k", integer, lambda v: v >= -1, "at least 1, or 0 or -1 to switch it off"),
    Rule("top_p", number, lambda v: 0 < v <= 1, "greater than 0 and at most 1"),
    Rule("min_p", number, lambda v: 0 <= v <= 1, "from 0 to 1"),
    Rule("repetition_penalty", number, lambda v: v > 0, "greater than 0"),
    Rule("presence_penalty", number, lambda v: -2 <= v <= 2, "from -2 to 2"),
    Rule("frequency_penalty", number, lambda v: -2 <= v <= 2, "from -2 to 2"),
    Rule("seed", integer, lambda v: 0 <= v <= MAX_SEED, f"from 0 to {MAX_SEED}"),
    Rule(
        "stop",
        stop_strings,
        lambda v: few_and_short(v, 64, 1024),
        "at most 64 strings of at most 1,024 characters",
    ),
    Rule(
        "stop_token_ids",
        integers,
        lambda v: len(v) <= 1024 and all(i >= 0 for i in v),
        "at most 1,024 token ids of at least 0",
    ),
    Rule(
        "bad_words",
        strings,
        lambda v: few_and_short(v, 1024, 256),
        "at most 1,024 words of at most 256 characters",
    ),
    Rule("end_id", integer, lambda v: v >= NO_END, "a token id, or -1 for none"),
    Rule("ignore_eos", boolean),
    Rule("stream", boolean),
    Rule(
        "logprobs",
        logprobs_wanted,
        lambda v: v is None or 0 <= v <= MAX_LOGPROBS,
        f"from 0 to {MAX_LOGPROBS} alternatives",
    ),
    Rule("parse", boolean),
    Rule("timeout", number, lambda v: v >= 0, "seconds greater than 0, or 0 for none"),
    Rule("priority", integer),
    Rule("tool_choice", tool_wanted),
    Rule("parallel_tool_calls", boolean),
    Rule("response_format", json_object),
    Rule("structured_outputs", json_object),
    Rule("guided_decoding_guide_type", text_or_json),
    Rule("guided_decoding_guide", text_or_json),
    Rule("skip_reasoning", boolean),
)
RULES = {rule.field: rule for rule in _RULES}

_FLAGS = ("return_log_probs", "return_logprobs")  # they say whether; ``logprobs`` says how many
_JOINED = ("stop",)  # given under two names, both count

NAMES = tuple(sorted({*RULES, *ALIASES, *NEUTRAL, "sampling_parameters"}))


def parse_options(fields: Mapping[str, Any], *, other_names: Iterable[str] = ()) -> Options:
    """Reads the options among ``fields`` (every key must be one). ``other_names`` only feed "did you mean".

    Raises RequestError INVALID_ARGUMENT naming the option, its value and the legal range.
    """
    given: dict[str, tuple[str, Any]] = {}
    for name, value in _merged(fields, frozenset(other_names)).items():
        if accept_neutral(name, value):
            continue
        field, result = _read(name, value, other_names)
        if field in given:
            result = _both(field, given[field], (name, result))
        given[field] = (name, result)
    options = Options(**{field: value for field, (_, value) in given.items()})
    if options.max_tokens is not None and options.min_tokens > options.max_tokens:
        raise invalid(f"min_tokens: {options.min_tokens} is greater than max_tokens {options.max_tokens}")
    return options


def _both(field: str, first: tuple[str, Any], second: tuple[str, Any]) -> Any:
    """The value of an option that was given under two names."""
    (one, before), (other, value) = first, second
    if field in _JOINED:
        joined = tuple(dict.fromkeys(before + value))
        _check(field, RULES[field], joined)
        return joined
    if before == value:
        return value
    if field == "logprobs" and None not in (before, value) and (one in _FLAGS or other in _FLAGS):
        return before if other in _FLAGS else value
    raise invalid(f"{one} and {other} are the same option and were given different values")


def _read(name: str, value: Any, other_names: Iterable[str]) -> tuple[str, Any]:
    field = ALIASES.get(name, name)
    if name == "exclude_input_in_output":
        return field, not boolean(name, value)
    if name in _FLAGS:
        return field, 0 if boolean(name, value) else None
    if field not in RULES:
        close = difflib.get_close_matches(name, [*NAMES, *other_names], n=1)
        raise invalid(f'unknown option "{name}"' + (f'; did you mean "{close[0]}"?' if close else ""))
    rule = RULES[field]
    result = rule.read(name, value)
    _check(name, rule, result)
    if field == "top_k":
        return field, max(result, 0)
    if field == "timeout":
        return field, result or None
    return field, result


def _check(name: str, rule: Rule, value: Any) -> None:
    if not rule.legal(value):
        shown = json.dumps(list(value) if isinstance(value, tuple) else value)
        shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
        raise invalid(f"{name}: {shown} is not allowed; it must be {rule.range}")


def _merged(fields: Mapping[str, Any], inputs: frozenset[str]) -> dict[str, Any]:
    """``fields`` with the vLLM backend's ``sampling_parameters`` (a JSON object in a string) spread out, which
    may not hold ``inputs``, nor what decides on the layout of the answer."""
    merged = {name: value for name, value in fields.items() if value is not None}
    raw = merged.pop("sampling_parameters", None)
    if raw is None:
        return merged
    raw = scalar("sampling_parameters", raw)
    if isinstance(raw, str):
        if not raw.strip():
            return merged
        raw = load_json("sampling_parameters", raw)
    else:
        check_json("sampling_parameters", raw)
    if not isinstance(raw, dict):
        raise invalid("sampling_parameters: a JSON object is expected")
    for name, value in raw.items():
        if name == "sampling_parameters":
            raise invalid("sampling_parameters: cannot be nested")
        if name in inputs:
            raise invalid(f"sampling_parameters: {name} is an input of its own")
        if ALIASES.get(name, name) == "stream" or name in LAYOUT:
            raise invalid(f"sampling_parameters: {name} is an option of its own")
        if value is None:
            continue
        if name in merged and merged[name] != value:
            raise invalid(f"{name}: given both by itself and in sampling_parameters, with different values")
        merged[name] = value
    return merged
