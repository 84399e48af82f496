"""Reads llama.cpp's grammar notation, GBNF, through llguidance's converter to Lark."""

from __future__ import annotations

import re

from llguidance.gbnf_to_lark import gbnf_to_lark

from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar.lark_source import MOST_RULES
from mm2c_runtime.json_input import check_text

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)


def lark_of_gbnf(grammar: str) -> str:
    """The Lark grammar that ``grammar`` says. Raises RequestError INVALID_ARGUMENT with the converter's reason."""
    rules = grammar.count("::=")
    if rules > MOST_RULES:  # the converter's time grows with their square
        reason = f"{rules:,} rules; at most {MOST_RULES} can be followed"
        raise RequestError("INVALID_ARGUMENT", f"the GBNF grammar cannot be read: {reason}")
    try:
        # the converter drops zeros of \u0041
        return gbnf_to_lark(_ESCAPE.sub(_character, grammar))
    except RecursionError:
        reason = "it is nested too deeply"
    except RequestError as error:
        reason = error.message
    except Exception as error:  # the converter raises Exception itself
        reason = str(error)
    raise RequestError("INVALID_ARGUMENT", f"the GBNF grammar cannot be read: {reason[:500]}")


def _character(match: re.Match[str]) -> str:
    """The character of a numeric escape, in a spelling that means it in strings and in brackets."""
    if match[3] is not None:
        return match[0]
    number = int(match[1] or match[2], 16)
    if number > 0x10FFFF:
        raise RequestError("INVALID_ARGUMENT", f"{match[0]} is no character")
    character = chr(number)
    check_text(match[0], character)
    return character if number > 0x7F or character.isalnum() else f"\\x{number:02x}"
