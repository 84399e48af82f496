"""Demanded calls of real bundles, sampled hot: what ends by itself parses and fits its schema, always.

A trained checkpoint and one of random weights, whose wishes have nothing to do with the grammar.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mm2c.pipeline import build_bundle
from mm2c.request import BuildRequest
from mm2c_runtime.bundle import Bundle
from mm2c_runtime.completion import Completion
from mm2c_runtime.detokenizer import Detokenizer, TokenBytes
from mm2c_runtime.parsing import parse_message

SAMPLES = int(os.environ.get("MM2C_SAMPLES", "250"))  # a checkpoint; 500 in all
ROWS = 24
LIMIT = 120  # tokens of an answer: enough for most, too few for some


def tool(
    name: str, properties: dict[str, Any], required: list[str] | None = None, **more: Any
) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required or list(properties),
        **more,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = tool(
    "get_weather",
    {
        "city": {"type": "string", "minLength": 1, "maxLength": 10},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    ["city", "unit"],
)
ORDER = tool(
    "order",
    {
        "items": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {"sku": {"type": "string", "maxLength": 4}, "n": {"$ref": "#/$defs/count"}},
                "required": ["sku", "n"],
                "additionalProperties": False,
            },
        },
        "note": {"anyOf": [{"type": "string", "maxLength": 6}, {"type": "null"}]},
        "gift": {"type": "boolean"},
    },
    ["items", "note"],
    **{"$defs": {"count": {"type": "integer", "minimum": 0, "maximum": 99}}},
)
PAY = tool("pay", {"amount": {"type": "number"}, "to": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{4}$"}})
OFFERS = [[WEATHER], [ORDER], [PAY], [WEATHER, ORDER, PAY]]
SCHEMAS = {one["function"]["name"]: one["function"]["parameters"] for one in (WEATHER, ORDER, PAY)}


def ask(bundle: Bundle, number: int) -> Completion:
    """Every fourth request is a conversation, the others are prompts that do not even tell of the tools."""
    offered = OFFERS[number // 4 % len(OFFERS)]
    named = offered[-1]["function"]["name"]
    said = f"Do it, please, for the {number}th time."
    prompt: dict[str, Any] = {"prompt": f"]~b]user\n{said}[e~[\n]~b]ai\n<think>\n", "parse": True}
    return bundle.generate(
        **({"messages": [{"role": "user", "content": said}]} if number % 4 == 0 else prompt),
        tools=offered,
        tool_choice=named if number % 3 == 0 else "required",
        parallel_tool_calls=number % 5 == 0,
        skip_reasoning=number % 7 != 1,
        temperature=1.5,
        seed=number,
        max_tokens=LIMIT,
    )


def check(bundle: Bundle, number: int, found: Completion) -> None:
    offered = OFFERS[number // 4 % len(OFFERS)]
    allowed = {one["function"]["name"] for one in offered}
    for call in found.tool_calls:
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        assert name in allowed
        jsonschema.validate(arguments, SCHEMAS[name], cls=jsonschema.Draft202012Validator)
    text = Detokenizer(TokenBytes(bundle.engine.preparer.tokenizer)).feed(found.token_ids)
    message = parse_message(text, offered, starts_in_reasoning=number % 7 == 1)
    if found.finish_reason == "tool_calls":
        assert found.tool_calls
        assert message.incomplete is None
        assert found.incomplete is None
        assert found.text.strip("\n") == ""
        assert number % 5 == 0 or len(found.tool_calls) == 1
    else:
        assert found.finish_reason == "length"
        assert found.num_output_tokens == LIMIT
        assert len(found.tool_calls) == len(message.tool_calls)
        assert (found.incomplete is None) == (message.incomplete is None)
        if "<minimax:tool_call>" in text:
            assert message.incomplete is not None or text.rstrip().endswith("</invoke>")


def sample(bundle: Path) -> Counter[str]:
    with Bundle.load(bundle) as loaded, ThreadPoolExecutor(ROWS) as clients:
        answers = list(clients.map(lambda number: ask(loaded, number), range(SAMPLES)))
        for number, answer in enumerate(answers):
            check(loaded, number, answer)
    return Counter(answer.finish_reason for answer in answers)


def build(checkpoint: Path, folder: Path) -> Path:
    request = BuildRequest(
        source=str(checkpoint), output=folder / "bundle", tp=1, context=1280, max_rows=ROWS
    )
    build_bundle(request)
    return folder / "bundle"


@pytest.mark.slow
def test_every_demanded_call_of_the_demo_checkpoint_fits_its_schema(tiny_m2: Path, tmp_path: Path) -> None:
    endings = sample(build(tiny_m2, tmp_path))
    assert endings["tool_calls"] > 0.8 * SAMPLES, endings


@pytest.mark.slow
def test_every_demanded_call_of_random_weights_fits_its_schema(
    random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    endings = sample(build(random_checkpoint(vocab=512), tmp_path))
    assert endings["tool_calls"] > 0.3 * SAMPLES, endings
    assert endings["length"] > 0, endings
