"""The engine's log probabilities in the shapes of the chat and of the old completions API.

One entry a generated token, in order: reasoning, tool calls and the token that ended the answer included. The text
of a token is its bytes; a part of a character is written as OpenAI writes it, ``bytes:\\xe2\\x82``, and a token
that has no text, such as the end token, is empty.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from typing import Any

Token = Mapping[str, Any]  # the engine's: token (id), logprob, bytes, and top for a generated one


def chat_logprobs(tokens: Iterable[Token]) -> dict[str, Any]:
    """``{"content": [{"token", "logprob", "bytes", "top_logprobs": […]}, …], "refusal": None}``."""
    content = [{**_entry(one), "top_logprobs": [_entry(other) for other in one["top"]]} for one in tokens]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """Of one choice as its tokens come: ``add`` gives their part of a completion's ``logprobs``.

    ``text_offset`` counts the characters before a token, which a part of a character does not move.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def add(self, tokens: Iterable[Token]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for one in tokens:
            made["tokens"].append(_name(one))
            made["token_logprobs"].append(one["logprob"])
            made["top_logprobs"].append({_name(other): other["logprob"] for other in one["top"]} or None)
            made["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(bytes(one["bytes"])))
        return made


def _entry(token: Token) -> dict[str, Any]:
    return {"token": _text(token["bytes"]), "logprob": token["logprob"], "bytes": token["bytes"]}


def _name(token: Token) -> str:
    """The text of a token; its id where it has none, since names must differ."""
    return _text(token["bytes"]) if token["bytes"] else f"token_id:{token['token']}"


def _text(raw: list[int]) -> str:
    data = bytes(raw)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
