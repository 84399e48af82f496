"""The rules of one grammar: named once, shared where their text is the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar.text import literal

GUIDE = "@guide"
# Some 500 tools of 20 parameters. More would take seconds to compile.
_MOST_RULES, _MOST_CHARACTERS = 20_000, 1_500_000


class RuleBook:
    """Collects rules and terminals; ``text`` is the whole grammar.

    ``marker_tokens`` is the symbol of the tokens that text may hold besides what it spells; empty for none.
    """

    def __init__(self, marker_tokens: str = "") -> None:
        self.marker_tokens = marker_tokens
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def terminal(self, expression: str) -> str:
        """The name of a terminal, one lexeme, for ``expression``."""
        return self._shared("T", expression)

    def rule(self, expression: str) -> str:
        """The name of a rule for ``expression``."""
        return self._shared("r", expression)

    def regex(self, pattern: str) -> str:
        """The name of a terminal for a regular expression."""
        return self.terminal(f"/{pattern}/")

    def either(self, texts: Iterable[str], after: str = "") -> str:
        """The name of a terminal for any one of ``texts`` and then ``after``; empty if there is none.

        Alternatives of a rule would each be a lexeme, and llguidance follows some thousand of these at most.
        """
        literals = " | ".join(map(literal, dict.fromkeys(texts)))
        return self.terminal(f"({literals}) {literal(after) if after else ''}".strip()) if literals else ""

    def json(self, schema: dict[str, Any]) -> str:
        """The name of a rule for the JSON values that llguidance derives from ``schema``."""
        options = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
        return self.rule("%json " + json.dumps({"x-guidance": options, **schema}))

    def reserve(self, prefix: str) -> str:
        """A new name, to be defined later: rules may be recursive."""
        if len(self._rules) >= _MOST_RULES:
            raise _too_large()
        name = f"{prefix}{len(self._rules)}"
        self._rules[name] = ""
        return name

    def define(self, name: str, expression: str, parameter: str = "") -> None:
        self._rules[name] = f"{name}{parameter}: {expression}"

    def text(self, start: str, guide: str = "") -> str:
        """The grammar; rules that were reserved and given up are left out.

        ``guide`` is a whole grammar by itself, which the rules know as ``GUIDE``; with it the text is llguidance's
        list of grammars, in JSON, so that neither sees a name of the other.
        """
        lark = "\n".join([f"start: {start}", *filter(None, self._rules.values())]) + "\n"
        if len(lark) > _MOST_CHARACTERS:
            raise _too_large()
        if not guide:
            return lark
        return json.dumps({"grammars": [{"lark_grammar": lark}, {"name": GUIDE[1:], "lark_grammar": guide}]})

    def _shared(self, prefix: str, expression: str) -> str:
        if expression not in self._names:
            self._names[expression] = self.reserve(prefix)
            self.define(self._names[expression], expression)
        return self._names[expression]


def _too_large() -> RequestError:
    return RequestError(
        "INVALID_ARGUMENT",
        "the tools' or the answer's schemas are too large, or unfold into too much, to be enforced",
    )
