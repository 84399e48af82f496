"""Grammar rules for JSON values by schema, spelled compactly or as the chat template prints them.

Members come in any order and once each; members that a schema with ``properties`` does not declare are
allowed only where it says so (``additionalProperties``). No value's spelling holds one of the markers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mm2c_runtime.grammar import text
from mm2c_runtime.grammar.choices import fitting
from mm2c_runtime.grammar.lark import RuleBook
from mm2c_runtime.grammar.members import Member, check_count, members_rule
from mm2c_runtime.grammar.schema import UnsatisfiableError, Variant, refuse, variants

_SEPARATOR, _COLON = ", ?", ": ?"
# Finite as a double and short enough for every JSON reader: up to 1e299, or 100 digits.
_DIGITS = r"(?:0|[1-9][0-9]{0,99})"
_NUMBER = (
    rf"(?:{_DIGITS}(?:\.[0-9]{{1,99}})?(?:[eE][+\-]?[0-9]{{1,2}})?"
    r"|[1-9](?:\.[0-9]{1,99})?[eE](?:\+?[12][0-9]{2}|-[1-3][0-9]{2}))"
)
_RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")


class JsonRules:
    """Rules for values of schemas whose references point into ``root``.

    No spelling holds one of ``markers``; strings without bounds may hold ``marker_tokens``, a symbol.
    """

    def __init__(self, book: RuleBook, root: Any, markers: Iterable[str], marker_tokens: str = "") -> None:
        self._book, self._root, self._markers = book, root, tuple(markers)
        self._marker_tokens = marker_tokens
        self._safe = text.without(self._markers)
        self._names: dict[str, str | None] = {}

    def rule(self, node: Any) -> str:
        """The name of the rule for ``node``. Raises UnsatisfiableError, or RequestError for a bad schema."""
        key = json.dumps(node, sort_keys=True)
        if key not in self._names:
            self._names[key] = name = self._book.reserve("json")
            try:
                self._book.define(name, self.alternatives(variants(node, self._root)))
            except UnsatisfiableError:
                self._names[key] = None
        known = self._names[key]
        if known is None:
            raise UnsatisfiableError
        return known

    def alternatives(self, choices: Sequence[Variant]) -> str:
        """The right-hand side for values that satisfy one of ``choices``."""
        found: list[str] = []
        for variant in choices:
            if "enum" in variant:
                found.append(self._book.either(self.spellings(variant)))
                continue
            for name in sorted(variant["type"]):
                try:
                    found.append(self._typed(name, variant))
                except UnsatisfiableError:
                    continue
        found = list(dict.fromkeys(filter(None, found)))
        if not found:
            raise UnsatisfiableError
        return " | ".join(found)

    def _typed(self, name: str, variant: Variant) -> str:
        if name == "null":
            return '"null"'
        if name == "boolean":
            return '"true" | "false"'
        if name in ("number", "integer"):
            if name == "integer" and "number" in variant["type"]:
                return ""
            return self._number(name, variant)
        return {"string": self._string, "array": self._array, "object": self._object}[name](variant)

    def spellings(self, variant: Variant) -> list[str]:
        """The JSON texts of the values that ``variant`` enumerates."""
        spellings = []
        for value in fitting(variant):
            compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            spellings += [compact, json.dumps(value, ensure_ascii=False)]
        distinct = dict.fromkeys(spellings)
        return [one for one in distinct if not any(marker in one for marker in self._markers)]

    def number_terminal(self, name: str, variant: Variant) -> str:
        """The terminal for numbers of a type; empty where they have a range that only a rule can express."""
        limits = {keyword: variant[keyword] for keyword in _RANGE if keyword in variant}
        if limits not in ({}, {"minimum": 0}):
            return ""
        return self._book.regex(f"{'' if limits else '-?'}{_DIGITS if name == 'integer' else _NUMBER}")

    def _number(self, name: str, variant: Variant) -> str:
        limits = {keyword: variant[keyword] for keyword in _RANGE if keyword in variant}
        return self.number_terminal(name, variant) or self._book.json({"type": name, **limits})

    def _string(self, variant: Variant) -> str:
        low, high = variant.get("minLength", 0), variant.get("maxLength")
        if high is not None and low > high:
            raise UnsatisfiableError
        formats = {"format": variant["format"]} if variant.get("format") in _FORMATS else {}
        if "pattern" in variant or formats:
            patterns = [*variant.get("pattern", ()), f"^{self._safe}$"]
            lengths: dict[str, Any] = {
                key: variant[key] for key in ("minLength", "maxLength") if key in variant
            }
            allowed = {"allOf": [{"pattern": one} for one in patterns]}
            return self._book.json({"type": "string", **lengths, **formats, **allowed})
        string = self._book.regex(f'"{text.json_characters(low, high)}"')
        if high is not None and high < min(map(len, self._markers)):
            return string
        safe = self._without_markers(string)
        if low == 0 and high is None:
            return f"{safe} | {self._marked_string()}" if self._marker_tokens else safe
        # what llguidance masks fast, and the rest
        fast = self._book.regex(f'"{text.json_characters(low, high, less_than=False)}"')
        return f"{fast} | {safe}"

    def _marked_string(self) -> str:
        """A string that holds tokens of markers."""
        pieces = [
            before + text.json_characters() + after for before, after in (('"', ""), ("", ""), ("", '"'))
        ]
        first, inner, last = (self._without_markers(self._book.regex(piece)) for piece in pieces)
        return self._book.rule(f"{first} {self._marker_tokens} ({inner} {self._marker_tokens})* {last}")

    def _array(self, variant: Variant) -> str:
        low, high = variant.get("minItems", 0), variant.get("maxItems")
        first = variant.get("prefixItems", [])
        if not isinstance(first, list):
            refuse("invalid schema: prefixItems must be a list")
        try:
            items = self.rule(variant.get("items", True))
        except UnsatisfiableError:
            items = ""
        heads: list[str] = []
        for node in first:
            try:
                heads.append(self.rule(node))
            except UnsatisfiableError:
                high = min(len(heads), high if high is not None else len(heads))
                break
        if not items:
            high = min(len(heads), high if high is not None else len(heads))
        if high is not None and low > high:
            raise UnsatisfiableError
        return f'"[" {self._elements(heads, items, 0, low, high)} "]"'

    def _elements(self, heads: list[str], items: str, at: int, low: int, high: int | None) -> str:
        """What may stand from the element at position ``at`` on."""
        if high is not None and at >= high:
            return ""
        separator = self._book.regex(_SEPARATOR)
        if at == 0 or at < len(heads):
            rest = self._elements(heads, items, at + 1, low, high)
            element = f"{separator if at else ''} {heads[at] if at < len(heads) else items} {rest}"
            return element if at < low else f"({element})?"
        times = text.repeat(max(low - at, 0), None if high is None else high - at)
        return f"({separator} {items}){times}"

    def _object(self, variant: Variant) -> str:
        declared = variant.get("properties", {})
        patterns = variant.get("patternProperties", {})
        open_ended = variant.get("additionalProperties", not declared and not patterns)
        check_count(len({*declared, *variant.get("required", ())}), "an object")
        found: list[Member] = []
        for name in dict.fromkeys([*declared, *variant.get("required", ())]):
            required = name in variant.get("required", ())
            key = json.dumps(name, ensure_ascii=False)
            text.literal(name)
            try:
                if any(marker in key for marker in self._markers):
                    raise UnsatisfiableError
                # what is required and not declared is admitted by a schema that says nothing against it
                rule = self.rule(declared.get(name, variant.get("additionalProperties", True)))
            except UnsatisfiableError:
                if required:
                    raise
                continue
            opening = text.escaped(key) + _COLON
            found.append(
                Member(self._book.regex(opening), rule, required, self._book.regex(_SEPARATOR + opening))
            )
        extra = self._additional(declared, open_ended) + self._by_pattern(declared, patterns)
        return members_rule(self._book, found, extra, variant, self._book.regex(_SEPARATOR))

    def _additional(self, declared: Iterable[str], node: Any) -> list[str]:
        """Members whose names are not declared."""
        try:
            rule = self.rule(node)
        except UnsatisfiableError:
            return []
        key = self._without_markers(self._book.regex(text.json_key()))
        taken = " | ".join(text.literal(json.dumps(name, ensure_ascii=False)) for name in declared)
        return [f"{self._book.terminal(f'{key} & ~({taken})' if taken else key)} {self._colon()} {rule}"]

    def _by_pattern(self, declared: Iterable[str], patterns: dict[str, Any]) -> list[str]:
        if patterns and declared:
            refuse("patternProperties beside properties cannot be enforced")
        safe = {"pattern": f"^{self._safe}$"}
        return [
            f"{self._book.json({'type': 'string', 'allOf': [{'pattern': one}, safe]})} "
            f"{self._colon()} {self.rule(node)}"
            for one, node in patterns.items()
        ]

    def _without_markers(self, terminal: str) -> str:
        return self._book.terminal(f"{terminal} & {self._book.regex(self._safe)}")

    def _colon(self) -> str:
        return self._book.regex(_COLON)
