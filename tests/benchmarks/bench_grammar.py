"""Time to compile a grammar and to mask a token: python tests/benchmarks/bench_grammar.py

Twenty tools, a made-up vocabulary of M2's size (200,064). Masks are timed at every token of a rendered call, for
each kind of value by itself, and of an answer under each kind of guide.

The weak spot is strings with bounds: about 250 µs a token in the first request (50 in later ones), and about 1 ms
once the value holds a `<`, since llguidance then walks the whole vocabulary through a counter and the search for
`</parameter>` at once. All other values take 4 to 20 µs.
"""

from __future__ import annotations

import collections
import re
import statistics
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mm2c_runtime.grammar import Guide, tool_grammar
from mm2c_runtime.grammar.matcher import GrammarFactory
from mm2c_runtime.parsing.markers import BLOCK, END_BLOCK, END_THINK, THINK

VOCABULARY = 200_064
EOS = "[e~["
PROSE = (
    "the quick \"brown\" fox jumps over the lazy dog: if a < b and c[0] == 'x' then return 42 else raise\n"
)


def made_up_tokenizer(size: int = 200_000) -> Tokenizer:
    """Words of Python's own library and their beginnings, each with its merges, and Chinese characters."""
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    counts: collections.Counter[str] = collections.Counter()
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in file.parts:
            counts.update(
                re.findall(r" ?[A-Za-z]+|[0-9]{1,3}| ?[^\sA-Za-z0-9]+|\s+", file.read_text("utf-8", "ignore"))
            )
    words = [word for word, _ in counts.most_common()]
    plain = [word.strip() for word in words if word.isascii() and word.strip().isalpha()]
    words += map(chr, range(0x4E00, 0x9FFF))
    words += (f" {plain[i % 5000]}{plain[i * 7 % len(plain)]}" for i in range(400_000))
    vocab = {character: i for i, character in enumerate(sorted(alphabet.alphabet()))}
    merges = []
    for word in words:
        spelled = "".join(piece for piece, _ in alphabet.pre_tokenize_str(word))[:24]
        for end in range(2, len(spelled) + 1):
            if len(vocab) < size and spelled[:end] not in vocab:
                vocab[spelled[:end]] = len(vocab)
                merges.append((spelled[: end - 1], spelled[end - 1]))
        if len(vocab) == size:
            break
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])
    tokenizer.add_tokens(
        [AddedToken(marker, normalized=False) for marker in (THINK, END_THINK, BLOCK, END_BLOCK)]
    )
    return tokenizer


PARAMETERS: dict[str, tuple[Any, str]] = {
    "text": ({"type": "string"}, PROSE * 5),
    "bounded": ({"type": "string", "maxLength": 2000}, PROSE.replace("<", "-") * 5),
    "bounded_with_lt": ({"type": "string", "maxLength": 2000}, PROSE * 5),
    "pattern": ({"type": "string", "pattern": "^[A-Za-z ]+$"}, "only words here " * 10),
    "union": ({"type": ["string", "null", "integer"]}, PROSE * 3),
    "choice": ({"enum": ["celsius", "fahrenheit", "kelvin"]}, "fahrenheit"),
    "number": ({"type": "number"}, "-12345.678"),
    "range": ({"type": "integer", "minimum": 0, "maximum": 365}, "123"),
    "any": ({}, '{"a": [1, 2, {"b": "' + PROSE.replace('"', "'").strip() * 3 + '"}], "c": null}'),
    "record": (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "note": {"type": "string", "maxLength": 500},
                "tags": {"type": "array", "items": {"type": "string"}},
                "at": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}},
            },
            "required": ["name"],
        },
        '{"tags": ["first tag", "second tag"], "name": "a longer name of a thing", '
        '"note": "some words about it, and some more of them", "at": {"y": 1.5, "x": -2}}',
    ),
}


def tool(name: str) -> dict[str, Any]:
    properties = {key: {"description": f"The {key}.", **schema} for key, (schema, _) in PARAMETERS.items()}
    parameters = {"type": "object", "properties": properties, "required": ["text", "choice"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def main() -> None:
    begin = time.perf_counter()
    tokenizer = made_up_tokenizer()
    factory = GrammarFactory(tokenizer, VOCABULARY, [tokenizer.token_to_id(EOS)])
    spent = time.perf_counter() - begin
    print(f"vocabulary {VOCABULARY:,} ({tokenizer.get_vocab_size():,} tokens), made in {spent:.1f} s")
    tools = [tool(f"tool_{i}") for i in range(20)]
    writing, compiling = [], []
    for i in range(10):
        begin = time.perf_counter()
        grammar = tool_grammar(
            [*tools[:-1], tool(f"last_{i}")], "required", tokenizer=tokenizer, starts_in_reasoning=True
        )
        written = time.perf_counter()
        factory.matcher(grammar)
        writing.append((written - begin) * 1e3)
        compiling.append((time.perf_counter() - written) * 1e3)
    print(f"{len(tools)} tools of {len(PARAMETERS)} parameters, median of {len(writing)}:")
    print(f"  write {statistics.median(writing):.1f} ms ({len(grammar):,} characters)")
    print(f"  compile {statistics.median(compiling):.1f} ms")
    begin = time.perf_counter()
    factory.matcher(grammar)
    print(f"  another request with the same grammar {(time.perf_counter() - begin) * 1e3:.2f} ms")
    measure_masks(factory, tokenizer, grammar)
    measure_guides(factory, tokenizer)


def measure_masks(factory: GrammarFactory, tokenizer: Tokenizer, grammar: str) -> None:
    print(
        f"{'mask, µs':24}{'tokens':>8}{'median':>9}{'p90':>9}{'max':>9}   cold, then warm (a second request)"
    )
    everything: dict[str, list[float]] = {"cold": [], "warm": []}
    for key, (_, value) in PARAMETERS.items():
        others = [name for name in ("text", "choice") if name != key]
        call = "".join(f'<parameter name="{name}">{PARAMETERS[name][1]}</parameter>\n' for name in others)
        opening = f'Think.\n</think>\n\n\n{BLOCK}\n<invoke name="tool_7">\n{call}<parameter name="{key}">'
        for run in everything:
            matcher = factory.matcher(grammar)
            for token in tokenizer.encode(opening, add_special_tokens=False).ids:
                matcher.advance(token)
            spent = []
            ids = tokenizer.encode(
                f"{value}</parameter>\n</invoke>\n{END_BLOCK}", add_special_tokens=False
            ).ids
            for token in ids:
                begin = time.perf_counter()
                matcher.bitmask()
                spent.append((time.perf_counter() - begin) * 1e6)
                matcher.advance(token)
            everything[run] += spent
            show(f"{key}, {run}", spent)
    for run, spent in everything.items():
        show(f"all, {run}", spent)


GUIDES: dict[str, tuple[Guide, str]] = {
    "json_object": (Guide("json_object"), '{"a": [1, 2, {"b": "some words about it"}], "c": null}'),
    "regex": (Guide("regex", r"(?:[A-Za-z ]+, ){2}\d{4}-\d{2}-\d{2}"), "The fox, the lazy dog, 2025-01-31"),
    "choice of 1,000": (Guide("choice", [f"choice number {i}" for i in range(1000)]), "choice number 777"),
    "gbnf": (
        Guide(
            "gbnf", 'root ::= sum ("=" [0-9]+)?\nsum ::= term ("+" term)*\nterm ::= [0-9]+ | "(" sum ")"\n'
        ),
        "(12+(3+45)+6)+7=73",
    ),
    "lark": (
        Guide("lark", 'start: "SELECT " NAME (", " NAME)* " FROM " NAME\nNAME: /[a-z_]+/'),
        "SELECT a, b FROM t",
    ),
}


def measure_guides(factory: GrammarFactory, tokenizer: Tokenizer) -> None:
    for name, (guide, answer) in GUIDES.items():
        begin = time.perf_counter()
        grammar = tool_grammar([], "none", tokenizer=tokenizer, starts_in_reasoning=True, guide=guide)
        matcher = factory.matcher(grammar)
        compiled = (time.perf_counter() - begin) * 1e3
        for token in tokenizer.encode("Think.\n</think>\n\n", add_special_tokens=False).ids:
            matcher.advance(token)
        spent = []
        for token in tokenizer.encode(answer, add_special_tokens=False).ids:
            begin = time.perf_counter()
            matcher.bitmask()
            spent.append((time.perf_counter() - begin) * 1e6)
            matcher.advance(token)
        show(f"{name} ({compiled:.0f} ms)", spent)


def show(label: str, spent: list[float]) -> None:
    p90 = sorted(spent)[int(len(spent) * 0.9)]
    print(f"{label:24}{len(spent):>8}{statistics.median(spent):>9.0f}{p90:>9.0f}{max(spent):>9.0f}")


if __name__ == "__main__":
    sys.exit(main())
