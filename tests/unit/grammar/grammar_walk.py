"""Two tokenizers, walks through grammars, and a validator for what they produce."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mm2c_runtime.grammar import tool_grammar
from mm2c_runtime.grammar.matcher import GrammarFactory, GrammarMatcher

TINY = Path(__file__).parents[2] / "fixtures" / "tiny-m2"
EOS = "[e~["
KINDS = ("added tokens", "bytes")
# What brings a value to its end, the first that is allowed.
_ENDING = ('">', '"', ":", "}", "]", "0", "null")


@cache
def tokenizer(kind: str) -> Tokenizer:
    """The demo checkpoint's, or one of bytes without the markers."""
    if kind == "added tokens":
        return Tokenizer.from_file(str(TINY / "tokenizer.json"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])
    return made


@cache
def factory(kind: str) -> GrammarFactory:
    """For a model whose vocabulary exceeds the tokenizer's."""
    made = tokenizer(kind)
    return GrammarFactory(made, made.get_vocab_size() + 13, [made.token_to_id(EOS)])


def tool(parameters: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def grammar(
    tools: Any, choice: Any = "required", kind: str = "added tokens", **options: Any
) -> GrammarMatcher:
    return factory(kind).matcher(tool_grammar(tools, choice, tokenizer=tokenizer(kind), **options))


def call(parameters: str, name: str = "f") -> str:
    opening = f'\n<minimax:tool_call>\n<invoke name="{name}">\n'
    return f"{opening}{parameters}</invoke>\n</minimax:tool_call>"


def parameter(name: str, value: str) -> str:
    return f'<parameter name="{name}">{value}</parameter>\n'


def follows(matcher: GrammarMatcher, text: str, kind: str = "added tokens") -> bool:
    """Whether the masks let ``text`` come next, as the tokenizer cuts it."""
    for token in tokenizer(kind).encode(text, add_special_tokens=False).ids:
        if not matcher.bitmask()[token // 32] >> (token % 32) & 1:
            return False
        matcher.advance(token)
    return True


def accepts(matcher: GrammarMatcher, text: str, kind: str = "added tokens") -> bool:
    """Whether ``text`` is a whole completion."""
    return follows(matcher, text, kind) and matcher.is_accepting


def fits(schema: Any, value: str, kind: str = "added tokens") -> bool:
    """Whether ``value`` may be written as the only parameter, which has this schema."""
    tools = [tool({"type": "object", "properties": {"p": schema}, "required": ["p"]})]
    return accepts(grammar(tools, kind=kind), call(parameter("p", value)), kind)


def allowed_tokens(matcher: GrammarMatcher) -> list[int]:
    bits = np.unpackbits(matcher.bitmask().view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def walk(
    matcher: GrammarMatcher,
    kind: str,
    random_: random.Random,
    required: tuple[str, ...] = (),
    *,
    free: int = 60,
    most: int = 1500,
    calls: bool = False,
) -> str:
    """A completion drawn uniformly among the allowed tokens.

    After ``free`` of them it makes for the end, by way of the ``required`` parameters and, with ``calls``, of a call.
    """
    made = tokenizer(kind)
    eos = made.token_to_id(EOS)
    tokens: list[int] = []
    while len(tokens) < most:
        allowed = allowed_tokens(matcher)
        assert allowed, f"no token may follow {made.decode(tokens, skip_special_tokens=False)!r}"
        wanted = calls and "</minimax:tool_call>" not in made.decode(tokens, skip_special_tokens=False)
        if eos in allowed and (not wanted or len(allowed) == 1):
            assert matcher.is_accepting
            if len(tokens) >= free or random_.random() < 0.5 or len(allowed) == 1:
                return made.decode(tokens, skip_special_tokens=False)
        if eos in allowed:
            allowed.remove(eos)
        chosen = [random_.choice(allowed)]
        if len(tokens) >= free:
            text = made.decode(tokens, skip_special_tokens=False)
            chosen = _towards_end(text, required, matcher, made) or chosen
        for token in chosen:
            matcher.advance(token)
        tokens += chosen
    raise AssertionError("the walk does not end")


def _towards_end(text: str, required: tuple[str, ...], matcher: GrammarMatcher, made: Tokenizer) -> list[int]:
    """The tokens of the next thing to be closed, or nothing if it is not known."""
    invoke = text.rpartition("<invoke")[2]
    tags = [f'<parameter name="{name}">' for name in required]
    endings = [*(tag for tag in tags if tag not in invoke), *_ENDING]
    for before, closing in (("</parameter>\n", "</invoke>\n"), ("</invoke>\n", "</minimax:tool_call>")):
        if any(text.endswith(before + closing[:n]) for n in range(len(closing))):
            endings = [closing, *endings]
    endings = ["</parameter>\n", *endings]
    if "<minimax:tool_call>" not in text:
        endings = ["</think>", "<minimax:tool_call>", *endings]
    for ending in endings:
        begun = next(n for n in range(len(ending) - 1, -1, -1) if text.endswith(ending[:n]))
        tokens = made.encode(ending[begun:], add_special_tokens=False).ids
        if matcher.follows(tokens) == len(tokens):
            return tokens
    return []


def valid(value: Any, schema: Any) -> bool:
    """Whether ``value`` satisfies ``schema``, by jsonschema, which shares nothing with what is tested."""
    return bool(_validator(json.dumps(schema)).is_valid(value))


@cache
def _validator(schema: str) -> Draft202012Validator:
    made = json.loads(schema, object_hook=_without_nullable)
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def _without_nullable(node: dict[str, Any]) -> dict[str, Any]:
    """The same in JSON schema's own words: ``nullable`` is OpenAPI's."""
    if node.pop("nullable", False) is not True:
        return node
    return {"anyOf": [node, {"type": "null"}]}
