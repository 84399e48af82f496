"""`mm2c serve`'s side of the front: options, command line, environment, and the supervisor's care."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mm2c.cli.serve_openai import OpenAIOptions
from mm2c.errors import UserError
from mm2c.serve import openai_front
from mm2c.serve.openai_front import FrontSettings, OpenAIFront, check_front, in_url, reachable
from mm2c.serve.ports import choose_ports
from mm2c.serve.server import Server
from mm2c.serve.server import Settings as ServerSettings
from mm2c.serve.supervisor import CRASHES, Supervisor
from mm2c_runtime.openai.api_keys import VARIABLE, keys_of


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def _settings(tmp_path: Path, **more: object) -> FrontSettings:
    fields = {
        "bundle": tmp_path, "host": "127.0.0.1", "port": 9, "triton": "127.0.0.1:1", "models": ("m2", "org/m2"),
        "metrics_url": "http://127.0.0.1:2/metrics", "log": tmp_path / "log", **more,
    }  # fmt: skip
    return FrontSettings(**fields)  # type: ignore[arg-type]


def test_keys() -> None:
    assert keys_of("a, b\nc\r\n,") == (b"a", b"b", b"c")
    assert keys_of(" \n") == ()
    for bad in ("a b", "é", "a\tb", "a\0"):
        with pytest.raises(ValueError, match="space in it, or a character outside ASCII"):
            keys_of(bad)


def test_where_keys_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def keys(file: Path | None = None) -> str | None:
        options = OpenAIOptions.of(0, None, file, None, "127.0.0.1")
        assert options is not None
        assert "sk-" not in repr(options)
        return options.keys

    assert keys() is None
    monkeypatch.setenv(VARIABLE, "sk-a,sk-b")
    assert keys() == "sk-a,sk-b"
    file = tmp_path / "keys"
    file.write_text("sk-c\n\nsk-d\n")
    assert keys(file) == "sk-c,sk-d"  # the file counts where both are given
    for text, reason in (("\n", "no API key"), ("a b", "a space")):
        file.write_text(text)
        with pytest.raises(UserError, match=reason) as error:
            keys(file)
        assert str(file) in str(error.value)
    with pytest.raises(UserError, match="cannot be read: no such file"):
        keys(tmp_path / "none")
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(UserError, match=r"\$MM2C_API_KEY"):
        keys()


def test_options_without_a_port(tmp_path: Path) -> None:
    assert OpenAIOptions.of(None, None, None, None, "127.0.0.1") is None
    for host, file, names in (("::", None, None), (None, tmp_path, None), (None, None, ["m2"])):
        with pytest.raises(UserError, match="which is not started"):
            OpenAIOptions.of(None, host, file, names, "127.0.0.1")
    with pytest.raises(UserError, match="name is empty"):
        OpenAIOptions.of(0, None, None, [" "], "127.0.0.1")


def test_the_command_line_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv(VARIABLE, "sk-inherited")
    front = OpenAIFront(
        _settings(tmp_path, keys="sk-a", system_fingerprint="fp_1", max_model_len=7), tmp_path
    )
    command = " ".join(front.command())
    assert "-m mm2c_runtime.openai --triton 127.0.0.1:1" in command
    assert "--served-model-name m2 --served-model-name org/m2" in command
    assert "--system-fingerprint fp_1 --max-model-len 7" in command
    assert "sk-" not in command
    assert front.environment()[VARIABLE] == "sk-a"
    assert front.environment()["PYTHONPATH"] == f"{tmp_path / 'runtime'}:/mine"
    assert VARIABLE not in OpenAIFront(_settings(tmp_path), tmp_path).environment()
    assert "sk-a" not in repr(_settings(tmp_path, keys="sk-a"))


def test_triton_is_not_told_the_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "sk-a")
    settings = ServerSettings(tmp_path, "127.0.0.1", choose_ports("127.0.0.1", 0, 0, 0), tmp_path / "log")

    class Installation:
        libraries = ()

    class Run:
        socket = path = tmp_path

    assert VARIABLE not in Server(Installation(), Run(), settings).environment()  # type: ignore[arg-type]


def test_addresses(tmp_path: Path) -> None:
    for host, found in ((None, "10.0.0.1"), ("::", "::")):
        options = OpenAIOptions.of(5, host, None, None, "10.0.0.1")
        assert options is not None
        assert options.address == (found, 5)
    assert (reachable("0.0.0.0"), reachable("::"), reachable("10.0.0.1")) == ("127.0.0.1", "::1", "10.0.0.1")
    assert in_url("::1") == "[::1]"
    assert _settings(tmp_path, host="::").url == "http://[::1]:9/v1"
    assert _settings(tmp_path).about == "model m2, org/m2; no API key"
    ports = choose_ports("127.0.0.1", 0, 0, 0, ("127.0.0.1", 0))
    assert ports.openai not in (None, 0, ports.http, ports.grpc, ports.metrics)
    with pytest.raises(UserError, match="--openai-port"):
        choose_ports("127.0.0.1", ports.http, 0, 0, ("127.0.0.1", ports.http))


def test_what_the_front_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="had no OpenAI front"):
        check_front(tmp_path)
    monkeypatch.setattr(openai_front, "NEEDED", ("uvicorn", "no_such_package_xyz"))
    with pytest.raises(UserError, match=r"not installed: no_such_package_xyz\n") as error:
        check_front(tmp_path)
    assert error.value.remedy is not None
    assert "serve" in error.value.remedy


def test_a_front_that_ends_at_once_is_told_with_its_words(tmp_path: Path) -> None:
    class Failing(OpenAIFront):
        def command(self) -> list[str]:
            return ["/bin/sh", "-c", "echo no module >&2; exit 3"]

    front = Failing(_settings(tmp_path), tmp_path)
    front.start()
    with pytest.raises(UserError, match=r"the OpenAI front ended \(status 3\)\nno module") as error:
        front.wait_ready(lambda: (tmp_path / "log").read_text())
    assert error.value.exit_code == 1
    front.kill()


class FrontDouble:
    def __init__(self, calls: list[str]) -> None:
        self._calls = calls
        self.status: int | None = None

    def exit_status(self) -> int | None:
        return self.status

    def start(self) -> None:
        self.status = None
        self._calls.append("front start")

    def __getattr__(self, name: str) -> object:
        return lambda *_: self._calls.append(f"front {name}")


class ServerDouble:
    pid, log, control = 1, "/the/log", None

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def exit_status(self) -> None:
        return None

    def log_tail(self) -> str:
        return "the log"

    def __getattr__(self, name: str) -> object:
        return lambda *_: self._calls.append(f"server {name}")


@pytest.fixture
def supervised() -> tuple[Supervisor, FrontDouble, list[str], list[str]]:
    calls: list[str] = []
    notes: list[str] = []
    front = FrontDouble(calls)
    supervisor = Supervisor(ServerDouble(calls), notes.append, 1.0, front)  # type: ignore[arg-type]
    supervisor.start()
    return supervisor, front, calls, notes


Supervised = tuple[Supervisor, FrontDouble, list[str], list[str]]


def test_the_order_of_start_and_stop(supervised: Supervised) -> None:
    supervisor, _, calls, _ = supervised
    assert calls == ["front start", "server start", "server wait_ready", "front wait_ready"]
    calls.clear()
    supervisor.stop()
    assert calls == ["front terminate", "server stop", "front stop"]
    calls.clear()
    supervisor.kill()
    assert calls == ["front kill", "server kill"]


class SlowServerDouble(ServerDouble):
    """Asks ``during`` how it is while it starts."""

    def __init__(self, calls: list[str], during: Callable[[], None]) -> None:
        super().__init__(calls)
        self.during, self.status = during, None

    def exit_status(self) -> int | None:  # type: ignore[override]
        return self.status

    def wait_ready(self, timeout: float, tick: Callable[[], None]) -> None:
        self.during()
        tick()
        self._calls.append("server ready")


def test_a_front_that_ends_while_a_large_model_loads_is_told_at_once(tmp_path: Path) -> None:
    class Failing(OpenAIFront):
        def command(self) -> list[str]:
            return ["/bin/sh", "-c", "exit 3"]

        def ended(self) -> None:
            assert self._process is not None
            self._process.wait(20)

    calls: list[str] = []
    front = Failing(_settings(tmp_path), tmp_path)
    supervisor = Supervisor(SlowServerDouble(calls, front.ended), calls.append, 1.0, front)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"the OpenAI front ended \(status 3\)"):
        supervisor.start()
    assert calls == ["server start"]


def test_a_front_that_dies_while_the_server_is_replaced_does_not_wait_for_it() -> None:
    calls: list[str] = []
    front = FrontDouble(calls)
    server = SlowServerDouble(calls, lambda: None)
    supervisor = Supervisor(server, lambda note: None, 1.0, front)  # type: ignore[arg-type]
    supervisor.start()
    calls.clear()
    server.status, server.during = -11, lambda: setattr(front, "status", -9)
    supervisor.look()
    assert calls == ["server kill", "server start", "front start", "server ready"]


def test_a_front_that_dies_is_started_again_and_given_up_in_the_end(supervised: Supervised) -> None:
    supervisor, front, calls, notes = supervised
    calls.clear()
    for _ in range(CRASHES):
        front.status = -9
        supervisor.look()
    assert calls == ["front start"] * CRASHES
    assert "signal 9 (SIGKILL)); starting it again" in notes[0]
    front.status = 1
    with pytest.raises(UserError, match=r"the OpenAI front ended by itself .* giving up"):
        supervisor.look()
