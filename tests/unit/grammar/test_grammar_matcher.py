"""The matcher: masks in the step protocol's form, ends, several end tokens, grammars remembered and refused."""

from __future__ import annotations

import numpy as np
import pytest
from grammar_walk import EOS, allowed_tokens, call, factory, follows, grammar, tokenizer, tool

from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar import tool_grammar
from mm2c_runtime.grammar.matcher import GrammarFactory
from mm2c_runtime.sampling.bitmask import forbid

PING = [tool({"type": "object", "properties": {}}, "ping")]


def test_the_mask_has_the_step_protocols_form() -> None:
    made = factory("added tokens")
    matcher = grammar(PING)
    mask = matcher.bitmask()
    assert mask.dtype == np.int32
    assert mask.shape == (-(-made.vocab_size // 32),)
    logits = np.zeros(made.vocab_size, np.float32)
    forbid(logits, mask)
    assert set(np.flatnonzero(np.isfinite(logits))) == set(allowed_tokens(matcher))
    assert max(allowed_tokens(matcher)) < tokenizer("added tokens").get_vocab_size()


def test_a_vocabulary_smaller_than_the_tokenizers() -> None:
    made = tokenizer("added tokens")
    small = GrammarFactory(made, 300, [made.token_to_id(EOS)]).matcher("start: /[a-z]+/")
    mask = small.bitmask()
    assert mask.shape == (10,)
    assert not mask[-1] >> 12  # ids from 300 on
    assert max(allowed_tokens(small)) < 300


def test_every_end_token_ends() -> None:
    made = tokenizer("added tokens")
    ends = [made.token_to_id(EOS), made.token_to_id("]!d~[")]
    for end in ends:
        matcher = GrammarFactory(made, made.get_vocab_size(), ends).matcher(
            tool_grammar(PING, "ping", tokenizer=made)
        )
        assert follows(matcher, call("", "ping"))
        assert sorted(allowed_tokens(matcher)) == sorted(ends)
        matcher.advance(end)


def test_requests_with_one_grammar_do_not_see_each_other() -> None:
    first, second = grammar(PING), grammar(PING)
    assert follows(first, call("", "ping"))
    assert not second.is_accepting
    assert follows(second, call("", "ping"))
    assert first.is_stopped


def test_a_token_that_is_not_allowed_is_an_error() -> None:
    matcher = grammar(PING)
    with pytest.raises(RequestError, match="INTERNAL"):
        matcher.advance(tokenizer("added tokens").token_to_id("a"))
    with pytest.raises(RequestError):
        matcher.bitmask()


@pytest.mark.parametrize("text", ["start: nothing", "start: /(/", "", 'start: %json {"type": "strin"}'])
def test_what_does_not_compile_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(RequestError, match="cannot be compiled") as refused:
        factory("added tokens").matcher(text)
    assert refused.value.code == "INVALID_ARGUMENT"
    assert "no_forcing" not in refused.value.message


def test_few_grammars_are_remembered() -> None:
    made = tokenizer("bytes")
    few = GrammarFactory(made, made.get_vocab_size(), [made.token_to_id(EOS)], remembered=2)
    for letter in "abcab":
        few.matcher(f'start: "{letter}"')
    assert len(few._compiled) == 2


def test_large_grammars_are_not_remembered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm2c_runtime.grammar.matcher._REMEMBERED", 60)
    made = tokenizer("bytes")
    few = GrammarFactory(made, made.get_vocab_size(), [made.token_to_id(EOS)])
    for letter in "abc":
        few.matcher(f'start: "{letter * 15}"')
    assert len(few._compiled) == 2
    few.matcher(f'start: "{"d" * 100}"')
    assert len(few._compiled) == 1
