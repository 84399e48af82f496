"""The grammars of requests, compiled for the bundle's tokenizer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from mm2c_runtime.constraint import Constraint
from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar import tool_grammar
from mm2c_runtime.scheduling.constrained import Matcher

if TYPE_CHECKING:
    from mm2c_runtime.grammar.matcher import GrammarFactory

log = logging.getLogger("mm2c.engine")


class Grammars:
    """Compiles the grammars of requests for one tokenizer; safe to use from several threads.

    What is needed for that takes about a second for 200,000 tokens: it is made on a thread, beside the loading of
    the model. Where it cannot be made, for want of llguidance or for a tokenizer that it cannot read, constrained
    requests are refused with the reason; the others are served.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._factory: Future[GrammarFactory] = Future()
        threading.Thread(target=self._make, args=(vocab, eos), name="mm2c-grammars", daemon=True).start()

    def _make(self, vocab: int, eos: Sequence[int]) -> None:
        try:
            from mm2c_runtime.grammar.matcher import GrammarFactory

            if not eos:
                raise ValueError("the bundle names no token that ends an answer")
            self._factory.set_result(GrammarFactory(self._tokenizer, vocab, eos))
        except BaseException as error:  # Rust's panics, which are no Exception, too
            log.warning("answers cannot be constrained: %s: %s", type(error).__name__, error)
            self._factory.set_exception(error)

    def matcher(self, constraint: Constraint, *, starts_in_reasoning: bool) -> Matcher:
        """A matcher at the beginning of the answer. Raises RequestError: INVALID_ARGUMENT for what cannot be
        compiled."""
        error = self._factory.exception()
        if error is not None:
            reason = f"this engine cannot constrain answers: {type(error).__name__}: {error}"
            raise RequestError("INVALID_ARGUMENT", reason)
        grammar = tool_grammar(
            constraint.tools,
            constraint.tool_choice,
            tokenizer=self._tokenizer,
            guide=constraint.guide,
            starts_in_reasoning=starts_in_reasoning,
            parallel=constraint.parallel,
        )
        return self._factory.result().matcher(grammar)
