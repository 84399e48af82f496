"""`mm2c chat` against a served bundle: one-shot, with tools, in conversation, and when nobody answers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from served import MM2C, Served

TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]


@pytest.fixture
def tools(tmp_path: Path) -> str:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    return str(path)


def _chat(*arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([MM2C, "chat", *arguments], input=said, capture_output=True, text=True, timeout=60)


def test_one_shot_shows_thinking_and_answer(fake_server: Served) -> None:
    done = _chat("--url", fake_server.grpc, "--message", "Hello", "--max-tokens", "9", "--seed", "3")
    assert (done.returncode, done.stdout) == (0, "I think.\nHello there\n")


def test_tool_call_and_its_result(fake_server: Served, tools: str) -> None:
    done = _chat(
        "--url", fake_server.grpc, "-m", "Weather?", "--tools", tools, "--tool-result", "other=x", "--json"
    )  # fmt: skip
    (answer,) = json.loads(done.stdout)["answers"]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city":"Oslo"}'}


def test_results_given_beforehand_are_fed_back(fake_server: Served, tools: str) -> None:
    done = _chat(
        "--url", fake_server.grpc, "-m", "W?", "--tools", tools, "--tool-result", "get_weather=sun", "--json"
    )
    said = json.loads(done.stdout)
    assert [message["role"] for message in said["messages"][:4]] == ["user", "assistant", "tool", "assistant"]
    assert said["messages"][2]["content"] == "sun"
    assert len(said["answers"]) > 1


def test_conversation_with_commands(fake_server: Served, tools: str) -> None:
    said = f"hi\n/tools {tools}\n/reset\n/nonsense\n/tools\nagain\n/quit\n"
    done = _chat("--url", fake_server.grpc, said=said)
    assert done.returncode == 0
    assert done.stdout.count("Hello there") == 2
    assert "tools: get_weather" in done.stderr
    assert "tools: none" in done.stderr
    assert "/system TEXT" in done.stderr


def test_a_refused_question_does_not_end_the_conversation(fake_server: Served) -> None:
    done = _chat("--url", fake_server.grpc, said="refuse this\nhi\n/quit\n")
    assert done.returncode == 0
    assert "INVALID_ARGUMENT: this is refused" in done.stderr
    assert "Hello there" in done.stdout


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_question_asked_once_and_refused_ends_with_status_1(
    fake_server: Served, form: tuple[str, ...]
) -> None:
    done = _chat("--url", fake_server.grpc, "-m", "refuse this", *form)
    assert (done.returncode, done.stdout) == (1, "")
    assert "INVALID_ARGUMENT: this is refused" in done.stderr


def test_every_sampling_option_is_accepted(fake_server: Served) -> None:
    given = {
        "max-tokens": "9", "temperature": "0.7", "top-p": "0.9", "top-k": "5", "min-p": "0.1",
        "repetition-penalty": "1.1", "presence-penalty": "0.5", "frequency-penalty": "-0.5",
        "seed": str(2**64 - 1), "stop": "x",
    }  # fmt: skip
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    done = _chat("--url", fake_server.grpc, "-m", "Hello", *flags)
    assert (done.returncode, done.stdout) == (0, "I think.\nHello there\n"), done.stderr


def test_bad_tools_do_not_end_the_conversation(fake_server: Served, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('[{"function": 3}]')
    done = _chat("--url", fake_server.grpc, said=f"/tools {bad}\n/tools {tmp_path}\nhi\n")
    assert done.returncode == 0
    assert "tools[0]" in done.stderr
    assert "the tools cannot be read" in done.stderr
    assert "Hello there" in done.stdout


def test_nobody_answers() -> None:
    done = _chat("--url", "127.0.0.1:9", "-m", "hi")
    assert done.returncode == 1
    assert "no Triton server answers" in done.stderr
    assert "mm2c serve" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--json",), "--json needs --message"),
        (("-m", "x", "--tool-result", "oops"), "a tool result is NAME=TEXT"),
        (("-m", "x", "--tools", "/nowhere.json"), "the tools cannot be read"),
        (("-m", "x", "--local", "/nowhere"), "no bundle here"),
        (("-m", "x", "--max-tokens", "0"), "0 is not allowed; it must be at least 1"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], reason: str) -> None:
    done = _chat(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
