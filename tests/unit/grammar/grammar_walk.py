"""Two tokenizers, walks through grammars, and a JSON schema validator for what they produce."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mm2c_runtime.grammar import tool_grammar
from mm2c_runtime.grammar.matcher import GrammarFactory, GrammarMatcher

TINY = Path(__file__).parents[2] / "fixtures" / "tiny-m2"
EOS = "[e~["
KINDS = ("added tokens", "bytes")
# What brings a value to its end, the first that is allowed.
_ENDING = ('">', '"', "}", "]", "0", "null")


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
) -> str:
    """A completion drawn uniformly among the allowed tokens.

    After ``free`` of them it makes for the end, by way of the ``required`` parameters.
    """
    made = tokenizer(kind)
    eos = made.token_to_id(EOS)
    tokens: list[int] = []
    while len(tokens) < most:
        allowed = allowed_tokens(matcher)
        assert allowed, f"no token may follow {made.decode(tokens, skip_special_tokens=False)!r}"
        if eos in allowed:
            assert matcher.is_accepting
            if len(tokens) >= free or random_.random() < 0.5 or len(allowed) == 1:
                return made.decode(tokens, skip_special_tokens=False)
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
        endings = ["</think>", "<minimax:tool_call>"]
    for ending in endings:
        begun = next(n for n in range(len(ending) - 1, -1, -1) if text.endswith(ending[:n]))
        tokens = made.encode(ending[begun:], add_special_tokens=False).ids
        if matcher.follows(tokens) == len(tokens):
            return tokens
    return []


def valid(value: Any, schema: Any, root: Any) -> bool:
    """JSON schema, of the keywords that the tests use."""
    if isinstance(schema, bool):
        return schema
    if schema.get("nullable") and value is None:
        return True
    if "$ref" in schema and not valid(value, _pointed(schema["$ref"], root), root):
        return False
    if not all(valid(value, one, root) for one in schema.get("allOf", ())):
        return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema and not any(valid(value, one, root) for one in schema[keyword]):
            return False
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    names = schema.get("type", [])
    names = names if isinstance(names, list) else [names]
    if names and not any(_is(value, name) for name in names):
        return False
    if isinstance(value, str):
        return _counted(value, schema, "Length") and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        pairs = [
            (one, first[i] if i < len(first) else schema.get("items", True)) for i, one in enumerate(value)
        ]
        return _counted(value, schema, "Items") and all(valid(one, node, root) for one, node in pairs)
    return not isinstance(value, dict) or _object(value, schema, root)


def _object(value: dict[str, Any], schema: Any, root: Any) -> bool:
    properties, additional = schema.get("properties", {}), schema.get("additionalProperties", True)
    return (
        set(schema.get("required", ())) <= value.keys()
        and _counted(value, schema, "Properties")
        and all(valid(one, properties.get(key, additional), root) for key, one in value.items())
    )


def _counted(value: Any, schema: Any, what: str) -> bool:
    return bool(schema.get(f"min{what}", 0) <= len(value) <= schema.get(f"max{what}", len(value)))


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    kinds = {"number": (int, float), "string": str, "null": type(None), "array": list, "object": dict}
    return name in kinds and isinstance(value, kinds[name])  # type: ignore[arg-type]


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True) or (
        {type(one), type(other)} == {int, float} and bool(one == other)
    )


def _pointed(reference: str, root: Any) -> Any:
    for step in reference.split("/")[1:]:
        root = root[step]
    return root
