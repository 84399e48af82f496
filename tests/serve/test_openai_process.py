"""The OpenAI front as a child of `mm2c serve`: keys, restarts, and an end that tells its clients."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from served import MM2C, Served

from mm2c.serve.processes import marked
from mm2c.serve.run_directory import sweep

PATIENCE = 40.0  # seconds on a machine that is busy
COUNT: Any = [{"role": "user", "content": "count"}]


@pytest.fixture
def start(fake_bundle: Path, tmp_path: Path) -> Any:
    """Options of `mm2c serve` -> a server with the OpenAI API, stopped with the test."""
    started: list[Served] = []

    def start(*options: str) -> Served:
        started.append(Served(fake_bundle, tmp_path, "--openai-port", "0", *options))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.stop()


def _front_of(server: Served) -> int:
    (pid,) = _fronts(server)
    return pid


def _fronts(server: Served) -> list[int]:
    return marked("MM2C_SERVE_FRONT", str(server.run))


def _client(server: Served, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=server.openai, api_key=key, max_retries=0)


def _health(server: Served) -> int:
    try:
        url = server.openai.removesuffix("/v1") + "/health"
        return int(urllib.request.urlopen(url, timeout=5).status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0


def _within(seconds: float, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_keys_and_names_and_a_front_that_dies(start: Callable[..., Served], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-one\nsk-two\n")
    server = start("--api-key-file", str(keys), "--served-model-name", "m2", "--served-model-name", "org/m2")
    first = _front_of(server)
    for pid in (first, server.triton_pid):
        assert b"sk-one" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"sk-one" not in Path(f"/proc/{server.triton_pid}/environ").read_bytes()
    with _client(server, "sk-two") as client:
        assert [model.id for model in client.models.list()] == ["m2", "org/m2"]
    with _client(server, "sk-three") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()

    stream = iter(server.stream(text_input="t", max_tokens=300))
    text = next(stream)["text_output"]
    os.kill(first, signal.SIGKILL)
    _within(PATIENCE, lambda: _fronts(server) not in ([], [first]) and _health(server) == 200)
    text += "".join(part["text_output"] for part in stream)
    assert text == "".join(f"t{n} " for n in range(300))  # Triton was left alone
    with _client(server, "sk-one") as client:
        assert client.completions.create(model="m2", prompt="a", max_tokens=1).choices[0].text == "a0 "
    assert (
        "the OpenAI front ended by itself (signal 9 (SIGKILL)); starting it again"
        in server.errors.read_text()
    )


def test_a_triton_that_dies_under_it_and_a_supervisor_above(start: Callable[..., Served]) -> None:
    server = start()
    front = _front_of(server)
    with _client(server) as client:
        stream = iter(
            client.chat.completions.create(model="fake", messages=COUNT, max_tokens=10**6, stream=True)
        )
        next(stream)
        os.kill(server.triton_pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="does not answer") as error:
            list(stream)
        assert error.value.code == "service_unavailable"
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model="fake", messages=COUNT)
        assert refused.value.status_code == 503
        assert _health(server) == 503
        _within(PATIENCE, lambda: _health(server) == 200)
        assert client.completions.create(model="fake", prompt="a", max_tokens=1).choices[0].text == "a0 "
    assert _front_of(server) == front
    server.process.kill()
    server.process.wait()
    _within(PATIENCE, lambda: not _fronts(server) and not marked("MM2C_SERVE_RUN", str(server.run)))
    sweep()


def test_a_stop_lets_streams_end_and_tells_those_that_do_not(start: Callable[..., Served]) -> None:
    server = start("--drain", "3")
    with _client(server) as client:
        create = client.completions.create
        short = iter(create(model="fake", prompt="t", max_tokens=100, stream=True))
        endless = iter(create(model="fake", prompt="t", max_tokens=10**6, stream=True))
        text = next(short).choices[0].text
        next(endless)
        server.process.send_signal(signal.SIGINT)
        _within(PATIENCE, lambda: _health(server) == 0)  # nobody new
        chunks = list(short)
        assert text + "".join(chunk.choices[0].text for chunk in chunks) == "".join(
            f"t{n} " for n in range(100)
        )
        assert chunks[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.APIError, match="the engine process ended"):
            list(endless)
    assert server.process.wait(PATIENCE) == 0
    assert _fronts(server) == []


def _refused(bundle: Path, *options: str, **environment: str) -> str:
    """What `mm2c serve` says to a mistake, before it starts anything."""
    free = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    done = subprocess.run(
        [MM2C, "serve", str(bundle), *free, *options],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 2
    assert "starting tritonserver" not in done.stderr
    return done.stderr


def test_mistakes_are_told_before_anything_starts(fake_bundle: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    said: dict[str, str] = {}

    def refuse(name: str, *options: str, **environment: str) -> None:
        said[name] = _refused(fake_bundle, *options, **environment)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        mistakes = [
            threading.Thread(target=refuse, args=("port", "--openai-port", port)),
            threading.Thread(
                target=refuse, args=("empty", "--openai-port", "0", "--api-key-file", str(empty))
            ),
            threading.Thread(
                target=refuse, args=("variable", "--openai-port", "0"), kwargs={"MM2C_API_KEY": ""}
            ),
            threading.Thread(target=refuse, args=("alone", "--served-model-name", "m2")),
        ]
        for mistake in mistakes:
            mistake.start()
        for mistake in mistakes:
            mistake.join()
    assert f"port {port} cannot be used: address already in use" in said["port"]
    assert "--openai-port" in said["port"]
    assert "there is no API key in it" in said["empty"]
    assert "$MM2C_API_KEY" in said["variable"]
    assert "--served-model-name is of the OpenAI API, which is not started" in said["alone"]
