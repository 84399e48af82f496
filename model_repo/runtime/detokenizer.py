"""Token ids to text, a token at a time: never half a character, never a lost space.

Byte-level BPE makes this exact: a token is a fixed byte string, so the text of any ids is the UTF-8
decoding of their bytes joined, however they are split. Special tokens are silent; the parser tokens
(``<think>`` …) are not special and appear.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable

from tokenizers import Tokenizer

from mm2c_runtime.errors import BundleError


def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 bytes are their own character, the others follow from
    U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


_BYTES = _byte_of_char()


class TokenBytes:
    """The byte string of each token id, looked up once and kept. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        description = json.loads(tokenizer.to_str())
        if not _is_byte_level(description.get("decoder")):
            raise BundleError(
                "the tokenizer is not a byte-level BPE",
                where="tokenizer.json: decoder",
                remedy="build from a MiniMax-M2 checkpoint, whose tokenizer has a ByteLevel decoder",
            )
        self._tokenizer = tokenizer
        # An added token is no byte string of the alphabet: its text is its content, spaces and all.
        self._known: dict[int, bytes] = {
            token["id"]: b"" if token.get("special") else token["content"].encode("utf-8")
            for token in description.get("added_tokens", [])
        }

    def __getitem__(self, token: int) -> bytes:
        """Bytes of ``token``; empty for special tokens and ids outside the vocabulary."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._look_up(token)
        return found

    def _look_up(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token) if 0 <= token < 2**32 else None
        if text is None:  # the model's vocabulary is padded beyond the tokenizer's
            return b""
        try:
            return bytes([_BYTES[char] for char in text])
        except KeyError:  # a token spelled outside the alphabet stands for itself
            return bytes(text.encode("utf-8"))


def _is_byte_level(decoder: object) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Sequence":
        parts = decoder.get("decoders", [])
        return len(parts) == 1 and _is_byte_level(parts[0])
    return decoder.get("type") == "ByteLevel"


class Detokenizer:
    """The text of one request. O(bytes of the token) a token; holds back at most three bytes."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, tokens: Iterable[int]) -> str:
        """The characters that ``tokens`` complete; bytes of an unfinished character wait for the next
        call."""
        return self._utf8.decode(b"".join(self._bytes[token] for token in tokens))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)
