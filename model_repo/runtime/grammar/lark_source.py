"""What a stranger's Lark grammar must not hold, since compiling or following it would not end, or end the process."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from mm2c_runtime.errors import RequestError

MOST_RULES = 500  # a chain of them is compiled by recursion (see ``matcher``)
# llguidance's own tokens, as far as they may hold the colons that are looked for: comments, strings, regular
# expressions, special tokens. Each begins with a character that begins nothing else.
_TOKEN = re.compile(
    r"""(?P<passed>(?:\#|//)[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\])+/|<[^<>\s]+>|[^"/<\#%:]+)"""
    r"""|(?P<json>%(?:json|regex|llguidance)(?![a-z]))|(?P<parameter>::)|(?P<rule>:)|(?P<other>%)"""
)


def check_lark(grammar: str) -> None:
    """Refuses a grammar of too many rules, parametric rules (a rule may need 2^64 of them at one place) and
    ``multipleOf``, whose automaton has as many states as the number says. Raises RequestError INVALID_ARGUMENT.

    What is no Lark at all is left to llguidance, which tells the reason.
    """
    position, rules = 0, 0
    while position < len(grammar):
        token = _TOKEN.match(grammar, position)
        if token is None:
            return
        position = token.end()
        if token["parameter"]:
            _refuse("parametric rules (`::`) are not supported")
        if token["json"]:
            position = _check_json(grammar, position)
        rules += token["rule"] is not None
    if rules > MOST_RULES:
        _refuse(f"{rules:,} rules and terminals; at most {MOST_RULES} can be followed")


def _check_json(grammar: str, position: int) -> int:
    """Where the JSON that begins here ends."""
    position += len(grammar[position : position + 1000]) - len(grammar[position : position + 1000].lstrip())
    try:
        value, end = json.JSONDecoder().raw_decode(grammar, position)
    except RecursionError:
        _refuse("JSON in it is nested too deeply")
    except ValueError as error:
        _refuse(f"JSON in it cannot be read: {error}")
    if _holds(value, "multipleOf"):
        _refuse("multipleOf in %json is not supported")
    return end


def _holds(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_holds(one, key) for one in value.values())
    return isinstance(value, list) and any(_holds(one, key) for one in value)


def _refuse(reason: str) -> NoReturn:
    raise RequestError("INVALID_ARGUMENT", f"the Lark grammar cannot be followed: {reason}")
