"""``generation_config.json``: what the checkpoint's authors chose where a request is silent, checked at load."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mm2c_runtime.errors import BundleError
from mm2c_runtime.option_values import integer
from mm2c_runtime.options import RULES, Rule

# The file's keys, each with the rule of the request's option of that meaning.
_RULES = {
    **{key: RULES[key] for key in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")},
    "max_new_tokens": RULES["max_tokens"],
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling, end tokens and answer length of a request that names none."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos: frozenset[int] = frozenset()
    max_tokens: int | None = None

    @classmethod
    def load(cls, path: Path, *, eos: Iterable[int] = (), vocab: int | None = None) -> GenerationDefaults:
        """Reads the file; a missing one, or a key that is missing or null, leaves sampling unfiltered.

        ``eos`` is used where the file names none; ``vocab`` bounds the ids that it names. ``do_sample: false``
        is temperature 0. Raises BundleError naming the key, its value and what it must be.
        """
        config = _read(path)
        greedy = config.get("do_sample")
        if greedy is not None and not isinstance(greedy, bool):
            _refuse(path, "do_sample", greedy, "true or false")
        values = {name: _value(path, config, name, rule) for name, rule in _RULES.items()}
        given = {name: value for name, value in values.items() if value is not None}
        max_tokens = given.pop("max_new_tokens", None)
        if "top_k" in given:
            given["top_k"] = max(given["top_k"], 0)
        if greedy is False:
            given["temperature"] = 0.0
        return cls(**given, eos=_end_tokens(path, config, eos, vocab), max_tokens=max_tokens)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"not valid JSON: {error}", where=str(path), remedy="correct it in the checkpoint and build again"
        ) from None
    if not isinstance(config, dict):
        _refuse(path, "the file", config, "a JSON object")
    return config


def _value(path: Path, config: dict[str, Any], name: str, rule: Rule) -> Any:
    value = config.get(name)
    if value is None:
        return None
    whole = rule.read is integer
    must = f"{'a whole number' if whole else 'a number'}, {rule.range}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(path, name, value, must)
    number = _finite(value)
    if number is None or (whole and number != int(number)) or not rule.legal(value):
        _refuse(path, name, value, must)
    return int(value) if whole else number


def _finite(value: int | float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _end_tokens(path: Path, config: dict[str, Any], eos: Iterable[int], vocab: int | None) -> frozenset[int]:
    named = config.get("eos_token_id")
    if named is None:
        return frozenset(eos)
    tokens = named if isinstance(named, list) else [named]
    for token in tokens:
        whole = isinstance(token, int) and not isinstance(token, bool) and token >= 0
        if not whole or (vocab is not None and token >= vocab):
            bound = "" if vocab is None else f" below {vocab}, the size of the vocabulary"
            _refuse(path, "eos_token_id", named, f"a token id or a list of them, each a whole number{bound}")
    return frozenset(tokens)


def _refuse(path: Path, name: str, value: Any, must: str) -> NoReturn:
    raise BundleError(
        f"{path.name}: {name} is {json.dumps(value)[:80]}; it must be {must}",
        where=str(path),
        remedy="correct it in the checkpoint and build again",
    )
