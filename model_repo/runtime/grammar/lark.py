"""The rules of one grammar: named once, shared where their text is the same."""

from __future__ import annotations

import json
from typing import Any

GUIDE = "@guide"
# Otherwise llguidance first looks how far the text is forced, and where a stranger's grammar forces text without
# end (`start: "a" start`, or `/a+/ /a+/`, whose first takes all) it looks forever.
_FREE = '%llguidance {"no_forcing": true}\n'


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

    def json(self, schema: dict[str, Any]) -> str:
        """The name of a rule for the JSON values that llguidance derives from ``schema``."""
        options = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
        return self.rule("%json " + json.dumps({"x-guidance": options, **schema}))

    def reserve(self, prefix: str) -> str:
        """A new name, to be defined later: rules may be recursive."""
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
        if not guide:
            return lark
        return json.dumps(
            {"grammars": [{"lark_grammar": _FREE + lark}, {"name": GUIDE[1:], "lark_grammar": guide}]}
        )

    def _shared(self, prefix: str, expression: str) -> str:
        if expression not in self._names:
            self._names[expression] = self.reserve(prefix)
            self.define(self._names[expression], expression)
        return self._names[expression]
