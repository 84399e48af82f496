"""Follows a grammar token by token and says which tokens may come next; llguidance does the work."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import llguidance
import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import Code, RequestError

# Kinds of tokens that are allowed or not as a whole wherever text is free; no marker begins in them.
_SLICES = [
    r"[\x20\x0A\x0D\x09]+",
    r"[^\"\\<\x00-\x1F\x7F]{1,10}",
    r"[^\"\\<\x00-\x1F\x7F]{1,30}",
    r"[^\"\\<\x00-\x1F\x7F]+",
]

# A mask stays under some 50 ms; a grammar that needs more is given up. The least that a
# grammar of 200 tools was seen to need is a tenth of this.
_STEP_ITEMS = 10_000
_LEXER_STATES = 50_000  # one takes one or two kilobytes
# Walking the vocabulary for every lexeme at once makes masks faster and compiling slower: not for large grammars.
_PRECOMPUTED = 200_000  # characters
_REMEMBERED = 2_000_000  # characters of grammars together; a compiled one has 25 bytes for each
# llguidance compiles rules by recursion, 8 to 80 KB of stack for each rule in a chain of them: the 8 MB of an
# ordinary thread end, with the process, at a chain of 100 to 1,000. Only what is touched takes memory.
_STACK = 256 << 20
# What follows another grammar first looks how far the text is forced, and where a stranger's grammar forces text
# without end (`start: "a" start`, or `/a+/ /a+/`, whose first takes all) it looks forever.
_FREE = '%llguidance {"no_forcing": true}\n'
# What llguidance says where one of its limits is met; it has no code for it.
_EXHAUSTED = ("too many", "max is", "too complex", "fuel", "too big", "limit")
_stack_size = threading.Lock()
T = TypeVar("T")


class GrammarFactory:
    """Compiles grammars for one tokenizer; safe to use from several threads.

    ``tokenizer``: a ``tokenizers.Tokenizer``. ``vocab_size``: of the model, which may exceed the tokenizer's;
    ids without a token are never allowed. ``eos_ids``: the tokens that end a completion. Making one takes
    about a second for a vocabulary of 200,000.
    """

    def __init__(
        self, tokenizer: Any, vocab_size: int, eos_ids: Sequence[int], *, remembered: int = 64
    ) -> None:
        self.vocab_size = vocab_size
        known = max(vocab_size, tokenizer.get_vocab_size(with_added_tokens=True))
        self._tokenizer = llguidance.LLTokenizer(
            tokenizer.to_str(), n_vocab=known, eos_token=list(eos_ids), slices=_SLICES
        )
        self._known, self._ends = known, frozenset(eos_ids)
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._remembered = remembered
        self._lock = threading.Lock()

    def matcher(self, grammar: str) -> GrammarMatcher:
        """A matcher at the beginning of ``grammar``, compiled unless it is remembered.

        Raises RequestError INVALID_ARGUMENT, with llguidance's reason, if it does not compile.
        """
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
        if compiled is None:
            compiled = self._compile(grammar)
            with self._lock:
                self._compiled[grammar] = compiled
                while len(self._compiled) > 1 and self._too_many():
                    self._compiled.popitem(last=False)
        return self._follow(compiled)

    def _too_many(self) -> bool:
        return len(self._compiled) > self._remembered or sum(map(len, self._compiled)) > _REMEMBERED

    def _follow(self, compiled: llguidance.LLMatcher) -> GrammarMatcher:
        return GrammarMatcher(compiled.deep_copy(), self.vocab_size, self._known, self._ends)

    def _compile(self, grammar: str) -> llguidance.LLMatcher:
        """Compiles, and computes one mask, which tells what else is wrong and makes every request's first fast."""
        for part in _parts(grammar):
            compiled = _with_deep_stack(partial(self._made, part))
            self._follow(compiled).bitmask()
        return compiled

    def _made(self, grammar: str) -> llguidance.LLMatcher:
        limits = llguidance.LLParserLimits(
            step_max_items=_STEP_ITEMS,
            max_lexer_states=_LEXER_STATES,
            precompute_large_lexemes=len(grammar) < _PRECOMPUTED,
            verbose_errors=False,
        )
        compiled = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if compiled.is_error():
            lines = compiled.get_error().partition("<backtrace>")[0].strip().splitlines()
            reason = "\n".join(line for line in lines if _FREE.strip() not in line)  # what we have added
            raise RequestError("INVALID_ARGUMENT", f"the grammar cannot be compiled: {reason[:2000]}")
        return compiled


def _parts(grammar: str) -> list[str]:
    """The grammar, after those it is a list of: a fault of one of these shows before there is any reasoning."""
    if not grammar.startswith("{"):
        return [_FREE + grammar]
    listed = json.loads(grammar)["grammars"]
    alone = [one["lark_grammar"] + "\n" + _FREE for one in listed[1:]]
    listed[0]["lark_grammar"] = _FREE + listed[0]["lark_grammar"]
    return [*alone, json.dumps({"grammars": listed})]


def _with_deep_stack(call: Callable[[], T]) -> T:
    """What ``call`` returns or raises, from a thread of its own."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)

    with _stack_size:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(target=run, name="grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


class GrammarMatcher:
    """Where one completion stands in its grammar; ``ends``: the tokens that end it. Used by one thread at a
    time."""

    def __init__(
        self, matcher: llguidance.LLMatcher, vocab_size: int, known: int, ends: frozenset[int]
    ) -> None:
        self._matcher, self.ends = matcher, ends
        self._words = np.zeros((known + 31) // 32, np.int32)
        self._vocab_size = vocab_size

    def bitmask(self) -> NDArray[np.int32]:
        """int32[ceil(V/32)], bit set = allowed: the step protocol's mask of the next token.

        Once the grammar is complete only the ids that end the completion are allowed. Raises RequestError
        INVALID_ARGUMENT if the grammar turns out too complex to follow: sending it again would not help.
        """
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check()
        words = self._words[: (self._vocab_size + 31) // 32].copy()
        if self._vocab_size % 32:
            words[-1:].view(np.uint32)[:] &= np.uint32((1 << (self._vocab_size % 32)) - 1)
        return words

    def advance(self, token: int) -> None:
        """Takes the token that was chosen. Raises RequestError INTERNAL if the grammar does not allow it."""
        if not self._matcher.consume_token(token):
            self._check()
            raise RequestError("INTERNAL", f"the grammar does not allow token {token} here")

    def follows(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens`` may come next, in this order; nothing is taken."""
        return self._matcher.validate_tokens(list(tokens))

    @property
    def is_accepting(self) -> bool:
        """Whether the completion may end here."""
        return self._matcher.is_accepting()

    @property
    def is_stopped(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().partition("\n")[0]
            if reason.startswith("NoExtension"):
                raise RequestError(
                    "INVALID_ARGUMENT",
                    "the grammar has a dead end: the text is not complete here and nothing may follow it",
                )
            exhausted = any(one in reason.lower() for one in _EXHAUSTED)
            code: Code = "INVALID_ARGUMENT" if exhausted else "INTERNAL"
            raise RequestError(code, f"the grammar is too complex to be followed: {reason[:500]}")
