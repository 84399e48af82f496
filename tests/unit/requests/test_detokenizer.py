from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mm2c_runtime.detokenizer import Detokenizer, TokenBytes
from mm2c_runtime.errors import BundleError


def _tokenizer() -> Tokenizer:
    """Byte-level with merges that cut characters in two, and M2's kinds of added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    merges = [("Ã", "©"), ("ð", "Ł"), ("Ġ", "a"), ("Ł", "ĺ"), ("ð", "ŁĺĢ"[0])]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[pair for pair in merges if "".join(pair) in vocab]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("[e~[", special=True)])
    tokenizer.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>", "a b", "日本")]
    )
    return tokenizer


TOKENIZER = _tokenizer()
TOKEN_BYTES = TokenBytes(TOKENIZER)
SIZE = TOKENIZER.get_vocab_size()


def pieces(ids: list[int], cuts: list[int]) -> list[list[int]]:
    places = sorted({min(cut, len(ids)) for cut in cuts} | {0, len(ids)})
    return [ids[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(st.integers(0, SIZE - 1), max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_any_ids_split_in_any_way_decode_as_the_whole(ids: list[int], cuts: list[int]) -> None:
    detokenizer = Detokenizer(TOKEN_BYTES)
    text = "".join(detokenizer.feed(piece) for piece in pieces(ids, cuts)) + detokenizer.finish()
    assert text == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=30))
def test_text_a_token_at_a_time(text: str) -> None:
    detokenizer = Detokenizer(TOKEN_BYTES)
    shown = [detokenizer.feed([token]) for token in TOKENIZER.encode(text, add_special_tokens=False).ids]
    assert "".join(shown) == text.replace("[e~[", "")
    assert detokenizer.finish() == ""
    if "�" not in text:
        assert "�" not in "".join(shown)


def test_half_a_character_is_held_back_and_flushed() -> None:
    detokenizer = Detokenizer(TOKEN_BYTES)
    ids = TOKENIZER.encode("😀", add_special_tokens=False).ids
    assert len(ids) > 1
    assert "".join(detokenizer.feed([token]) for token in ids[:-1]) == ""
    assert detokenizer.finish() == "�"


def test_parser_tokens_show_special_ones_and_unknown_ids_do_not() -> None:
    detokenizer = Detokenizer(TOKEN_BYTES)
    vocab = TOKENIZER.get_vocab()
    ids = [vocab[text] for text in ("<think>", "[e~[", "</think>")]
    assert detokenizer.feed([*ids, SIZE + 5]) == "<think></think>"


def test_added_tokens_are_their_content_and_space_around_them_stays() -> None:
    tokenizer = _tokenizer()
    # All characters of these are in the byte alphabet, where they would stand for other bytes.
    tokenizer.add_tokens([AddedToken("café", special=False), AddedToken(" Ġ ", special=False)])
    token_bytes, vocab = TokenBytes(tokenizer), tokenizer.get_vocab()
    for text in ("a <think> b</think>  c", "x café y", "<think>a b</think>", "[ Ġ ]", "日本 \n<think>\n"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        detokenizer = Detokenizer(token_bytes)
        assert "".join(detokenizer.feed([token]) for token in ids) + detokenizer.finish() == text
    assert token_bytes[vocab["café"]] == "café".encode()


@pytest.mark.parametrize("token", [SIZE, SIZE + 5000, 2**32, 2**63, -1])
def test_ids_that_the_tokenizer_does_not_know_have_no_text(token: int) -> None:
    detokenizer = Detokenizer(TOKEN_BYTES)
    a = TOKENIZER.token_to_id("a")
    assert detokenizer.feed([a, token, a]) == "aa"
    assert detokenizer.finish() == ""


def test_another_kind_of_tokenizer_is_refused() -> None:
    other = Tokenizer(models.BPE())
    with pytest.raises(BundleError, match="not a byte-level BPE"):
        TokenBytes(other)
    wrapped = json.loads(TOKENIZER.to_str())
    wrapped["decoder"] = {"type": "Sequence", "decoders": [wrapped["decoder"]]}
    assert TokenBytes(Tokenizer.from_str(json.dumps(wrapped)))[0]
