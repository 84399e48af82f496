"""Grammar rules for one parameter's value, from behind its ``>`` to its ``</parameter>``.

A declared string is raw text; every other value is JSON. Where both are declared, text that the parser takes
for one of the other values is such a value: a number or a constant that fits, or what a rule describes.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from mm2c_runtime.grammar import text
from mm2c_runtime.grammar.choices import fitting
from mm2c_runtime.grammar.json_rules import JsonRules
from mm2c_runtime.grammar.lark import RuleBook
from mm2c_runtime.grammar.schema import UnsatisfiableError, Variant, variants
from mm2c_runtime.parsing.json_text import quote
from mm2c_runtime.parsing.markers import END_PARAMETER
from mm2c_runtime.parsing.schema import ParameterSchema

CLOSE = END_PARAMETER + "\n"
_RAW = text.without([END_PARAMETER])
# How text begins that the parser may take for a value which only a rule describes; it strips what Python strips.
_SPACE = r"[\s\x1c-\x1f]*"
_BEGINS = {"array": r"\[", "object": r"\{", "integer": r"\-0-9", "number": r"\-0-9"}


def any_value(book: RuleBook) -> str:
    """The rule for a value of which nothing is known: the parser decides what it is."""
    raw = book.regex(_RAW)
    closed = _closed(book, [raw])
    # a marker in a value is data, and its token is how the model is used to write it
    return book.rule(f"({raw} {book.marker_tokens})* {closed}") if book.marker_tokens else closed


def value(book: RuleBook, node: Any, root: Any, reading: ParameterSchema) -> str:
    """The rule for a value of schema ``node``, which the parser reads by ``reading``.

    Raises UnsatisfiableError if there is no value, RequestError if the schema is bad.
    """
    choices = variants(node, root)
    rules = JsonRules(book, root, [END_PARAMETER], book.marker_tokens)
    others = [{**one, "type": one["type"] - {"string"}} for one in choices if one["type"] != {"string"}]
    found: list[str] = []
    # One lexeme must not go on where another has ended: beside free text, a value and its end are one lexeme.
    if any("string" in one["type"] and "enum" not in one for one in choices):
        scalars, others = _scalars(book, rules, others)
        found += scalars
    begun = "".join(
        dict.fromkeys(_BEGINS[name] for one in others for name in sorted(one["type"] & _BEGINS.keys()))
    )
    for variant in choices:
        if "string" in variant["type"]:
            found += _raw(book, variant, reading, begun)
    with suppress(UnsatisfiableError):
        found.append(f"{book.rule(rules.alternatives(others))} {text.literal(CLOSE)}")
    found = list(dict.fromkeys(filter(None, found)))
    if not found:
        raise UnsatisfiableError
    return book.rule(" | ".join(found))


def _scalars(book: RuleBook, rules: JsonRules, others: list[Variant]) -> tuple[list[str], list[Variant]]:
    """Lexemes of the values that are not strings, and the variants that only rules can express."""
    lexemes, left = [], []
    for variant in others:
        if "enum" in variant:
            lexemes.append(book.either(rules.spellings(variant), CLOSE))
            continue
        if "null" in variant["type"]:
            lexemes.append(text.literal("null" + CLOSE))
        if "boolean" in variant["type"]:
            lexemes += [text.literal(one + CLOSE) for one in ("true", "false")]
        numeric = "number" if "number" in variant["type"] else "integer"
        number = rules.number_terminal(numeric, variant) if numeric in variant["type"] else ""
        if number:
            lexemes.append(_closed(book, [number]))
        rest = variant["type"] & ({"array", "object"} | (set() if number else {"integer", "number"}))
        if rest:
            left.append({**variant, "type": rest})
    return lexemes, left


def _raw(book: RuleBook, variant: Variant, reading: ParameterSchema, begun: str) -> list[str]:
    """Lexemes of the raw text of the strings that satisfy ``variant``; none begins with one of ``begun``."""
    if "enum" in variant:
        strings = [one for one in fitting(variant) if isinstance(one, str) and END_PARAMETER not in one]
        return [book.either((one for one in strings if reading.read(one) == quote(one)), CLOSE)]
    low, high = variant.get("minLength", 0), variant.get("maxLength")
    if high is not None and low > high:
        return []
    conditions = [f"/(?:{text.searched(pattern)})/" for pattern in variant.get("pattern", ())]
    if begun:
        conditions.append(f"~/{_SPACE}[{begun}](?s:.*)/")
    if low == 0 and high is None:
        return [_closed(book, [book.regex(_RAW), *conditions]) if conditions else any_value(book)]
    counted = f"/{text.characters(low, high, less_than=True)}/"
    if high is not None and high < len(END_PARAMETER):
        return [_closed(book, [counted, *conditions])]
    everything = _closed(book, [counted, book.regex(_RAW), *conditions])
    if conditions:
        return [everything]
    # what llguidance masks fast, and the rest
    return [_closed(book, [f"/{text.characters(low, high, less_than=False)}/"]), everything]


def _closed(book: RuleBook, conditions: list[str]) -> str:
    return book.terminal(f"({' & '.join(conditions)}) {text.literal(CLOSE)}")
