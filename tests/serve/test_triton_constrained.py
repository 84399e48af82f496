"""Constrained answers of the demo bundle through Triton: every option's way from a client's tensor to the mask."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served import MM2C, Served

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures" / "train_tiny"))
from tools import TOOLS as DEMO_TOOLS  # those that the checkpoint was trained with

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": properties, "required": list(properties)},
        },
    }
    for name, properties in {
        "get_weather": {
            "city": {"type": "string", "maxLength": 8},
            "days": {"type": "integer", "maximum": 7},
        },
        "roll": {"sides": {"enum": [4, 6, 20]}},
    }.items()
]
SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
    },
    "required": ["mood", "score"],
    "additionalProperties": False,
}
NAMED = {"type": "function", "function": {"name": "roll"}}


def fields(**options: Any) -> dict[str, Any]:
    messages = json.dumps([{"role": "user", "content": "Tell me a joke."}])
    return {"messages": messages, "max_tokens": 200, "temperature": 0.0, **options}


@pytest.mark.parametrize("choice", ["required", "roll", json.dumps(NAMED)])
def test_a_demanded_call_streamed_and_whole(bundle_server: Served, choice: str) -> None:
    asked = fields(tools=json.dumps(TOOLS), tool_choice=choice, parallel_tool_calls=False)
    streamed = bundle_server.stream(**asked)
    deltas = [call for part in streamed for call in json.loads(part["tool_calls"])]
    assert set(deltas[0]) == {"index", "id", "type", "function"}
    assert all(set(call) == {"index", "function"} for call in deltas[1:])
    name = deltas[0]["function"]["name"]
    arguments = json.loads("".join(call["function"]["arguments"] for call in deltas))
    assert name == "roll" if choice != "required" else name in ("roll", "get_weather")
    assert arguments.get("sides") in (4, 6, 20) or arguments["days"] <= 7
    once = bundle_server.generate(**asked)
    assert once["finish_reason"] == "tool_calls"
    (call,) = json.loads(once["tool_calls"])
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (name, arguments)


def test_no_call_where_none_is_wanted(bundle_server: Served) -> None:
    messages = json.dumps([{"role": "user", "content": "Give me a 3 day forecast for Bergen in fahrenheit."}])
    asked = {**fields(tools=json.dumps(list(DEMO_TOOLS.values()))), "messages": messages}
    free = bundle_server.generate(**asked)
    forbidden = bundle_server.generate(**asked, tool_choice="none")
    assert json.loads(free["tool_calls"]) != []
    assert json.loads(forbidden["tool_calls"]) == []
    assert "<minimax:tool_call>" not in forbidden["text_output"]


@pytest.mark.parametrize(
    "options",
    [
        {
            "response_format": json.dumps(
                {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
            )
        },
        {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": json.dumps(SCHEMA)},
        {"sampling_parameters": json.dumps({"structured_outputs": {"json": SCHEMA}})},
    ],
)
def test_an_answer_of_a_schema(bundle_server: Served, options: dict[str, str]) -> None:
    whole = bundle_server.stream(**fields(**options)).whole()
    value = json.loads(whole.text)
    assert value["mood"] in ("good", "bad")
    assert 0 <= value["score"] <= 10
    assert whole.last["finish_reason"] == "stop"


def test_a_pattern_for_a_raw_prompt(bundle_server: Served) -> None:
    guide = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "[0-9]{2}:[0-9]{2}"}
    found = bundle_server.infer("minimax_m2_unary", text_input="It is now", max_tokens=20, **guide)
    assert re.fullmatch("[0-9]{2}:[0-9]{2}", found["text_output"][0].decode())


def test_reasoning_skipped(bundle_server: Served) -> None:
    thinking = bundle_server.stream(**fields(return_token_ids=True)).whole()
    at_once = bundle_server.stream(**fields(return_token_ids=True, skip_reasoning=True)).whole()
    assert thinking.reasoning
    assert at_once.reasoning == ""
    assert at_once.token_ids != thinking.token_ids


@pytest.mark.parametrize("path", ["minimax_m2/generate_stream", "minimax_m2_unary/generate"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tool_choice": "rol", "tools": json.dumps(TOOLS)}, "tool_choice names rol"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": json.dumps([{"name": "f", "parameters": {"type": "objekt"}}])}, "is no JSON type"),
        ({"response_format": '{"type": "jsonschema"}'}, "response_format"),
        ({"guided_decoding_guide_type": "regex", "guided_decoding_guide": "(a"}, "cannot be compiled"),
    ],
)
def test_refusals_are_400_with_the_reason(
    bundle_server: Served, path: str, options: dict[str, str], reason: str
) -> None:
    status, body = bundle_server.post(path, **fields(**options))
    assert status == 400
    assert reason in body
    assert "INVALID_ARGUMENT" in body


def chat(server: Served, *arguments: str) -> dict[str, Any]:
    command = [MM2C, "chat", "--url", server.grpc, "-m", "Tell me a joke.", "--temperature", "0", "--json"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_chat_demands_a_call_once(bundle_server: Served, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(TOOLS))
    said = chat(
        bundle_server,
        "--tools",
        str(tools),
        "--tool-choice",
        "roll",
        "--tool-result",
        "roll=4",
        "--max-tokens",
        "99",
    )
    first, *others = said["answers"]
    assert first["tool_calls"][0]["function"]["name"] == "roll"
    roles = [message["role"] for message in said["messages"]]
    assert roles[: len(first["tool_calls"]) + 2] == [
        "user",
        "assistant",
        *["tool"] * len(first["tool_calls"]),
    ]
    assert others


def test_chat_asks_for_a_schema_without_thinking(bundle_server: Served, tmp_path: Path) -> None:
    schema = tmp_path / "mood.json"
    schema.write_text(json.dumps(SCHEMA))
    (answer,) = chat(bundle_server, "--schema", str(schema), "--no-thinking")["answers"]
    assert answer["reasoning"] == ""
    assert set(json.loads(answer["content"])) == {"mood", "score"}
    schema.write_text('{"type": "objekt"}')
    done = subprocess.run(
        [MM2C, "chat", "-m", "x", "--schema", str(schema)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert 'did you mean "object"?' in done.stderr
