"""The grammars of requests, compiled for the bundle's tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tokenizers import Tokenizer

from mm2c_runtime.constraint import Constraint
from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar import tool_grammar
from mm2c_runtime.scheduling.constrained import Matcher

log = logging.getLogger("mm2c.engine")


class Grammars:
    """Compiles the grammars of requests for one tokenizer; safe to use from several threads.

    Making one takes about a second for 200,000 tokens. Where that is impossible, for want of llguidance or for
    a tokenizer that it cannot read, constrained requests are refused with the reason; the others are served.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._reason = ""
        try:
            from mm2c_runtime.grammar.matcher import GrammarFactory

            if not eos:
                raise ValueError("the bundle names no token that ends an answer")
            self._factory = GrammarFactory(tokenizer, vocab, eos)
        except Exception as error:  # llguidance raises bare exceptions
            self._reason = f"{type(error).__name__}: {error}"
            log.warning("answers cannot be constrained: %s", self._reason)

    def matcher(self, constraint: Constraint, *, starts_in_reasoning: bool) -> Matcher:
        """A matcher at the beginning of the answer. Raises RequestError: INVALID_ARGUMENT for what cannot be
        compiled."""
        if self._reason:
            reason = f"this engine cannot constrain answers: {self._reason}"
            raise RequestError("INVALID_ARGUMENT", reason)
        grammar = tool_grammar(
            constraint.tools,
            constraint.tool_choice,
            tokenizer=self._tokenizer,
            guide=constraint.guide,
            starts_in_reasoning=starts_in_reasoning,
            parallel=constraint.parallel,
        )
        return self._factory.matcher(grammar)
