"""`mm2c chat` checks its options, tools and results before anything is asked, and says what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mm2c.cli.chat import _command, _options_now
from mm2c.cli.chat_input import read_tools, sampling_options, tool_results
from mm2c.errors import UserError
from mm2c.serve.conversation import Conversation


def test_options_left_out_are_left_to_the_bundle() -> None:
    assert sampling_options(max_tokens=3, temperature=None, stop=None) == {"max_tokens": 3}
    assert sampling_options(top_k=0, temperature=0.0) == {"top_k": 0, "temperature": 0.0}


@pytest.mark.parametrize(
    ("option", "value", "reason", "flag"),
    [
        ("max_tokens", 0, "0 is not allowed; it must be at least 1", "--max-tokens 0"),
        ("max_tokens", 2**31, "it must be at most 2147483647", "--max-tokens 2147483648"),
        ("top_k", -2, "-2 is not allowed; it must be at least 1, or 0 or -1", "--top-k -2"),
        ("top_p", 0.0, "greater than 0 and at most 1", "--top-p 0"),
        ("min_p", 1.5, "from 0 to 1", "--min-p 1.5"),
        ("temperature", -1.0, "at least 0 (0 is greedy)", "--temperature -1"),
        ("temperature", float("nan"), "not a finite number", "--temperature nan"),
        ("repetition_penalty", 0.0, "greater than 0", "--repetition-penalty 0"),
        ("presence_penalty", 3.0, "from -2 to 2", "--presence-penalty 3"),
        ("frequency_penalty", -3.0, "from -2 to 2", "--frequency-penalty -3"),
        ("seed", -1, "from 0 to", "--seed -1"),
        ("seed", 2**64, "from 0 to", "--seed 18446744073709551616"),
    ],
)
def test_values_out_of_range(option: str, value: Any, reason: str, flag: str) -> None:
    with pytest.raises(UserError) as error:
        sampling_options(**{option: value})
    assert reason in error.value.what
    assert error.value.where.startswith(flag)


def test_a_call_is_demanded_until_there_is_its_result() -> None:
    options = {"tool_choice": "required", "seed": 1}
    assert _options_now([{"role": "user"}], options) == options
    assert _options_now([{"role": "assistant"}, {"role": "tool"}], options) == {"seed": 1}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[", "the tools are not JSON"),
        ("{}", "a JSON list of objects"),
        ("null", "a JSON list of objects"),
        ('["x"]', "a JSON list of objects"),
        ('[{"type": "function", "function": {"name": ""}}]', "tools[0] must name its function"),
        ('[{"type": "function", "function": {"name": "f", "parameters": 3}}]', "parameters"),
    ],
)
def test_bad_tools(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "tools.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_tools(path)
    assert reason in error.value.what
    assert error.value.where == str(path)


def test_tools_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "none", binary):
        with pytest.raises(UserError, match="the tools"):
            read_tools(path)


def test_bad_tools_leave_the_conversation_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps([TOOL]))
    bad.write_text('[{"type": "function", "function": "f"}]')
    conversation = Conversation(lambda messages, tools: iter(()))
    assert _command(conversation, f"/tools {good}")
    assert conversation.tools == [TOOL]
    assert _command(conversation, f"/tools {bad}")
    assert conversation.tools == [TOOL]
    assert "tools[0]" in capsys.readouterr().err


def test_results() -> None:
    assert tool_results(["f={}", "g=a=b"]) == {"f": "{}", "g": "a=b"}
    with pytest.raises(UserError, match="NAME=TEXT"):
        tool_results(["=x"])
