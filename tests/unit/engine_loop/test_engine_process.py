from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_engine import Listener, ToyExecutor, toy_engine

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.requests import parse_request
from mm2c_runtime.server import launcher
from mm2c_runtime.server.client import EngineClient
from mm2c_runtime.server.launcher import EngineProcess
from mm2c_runtime.server.protocol import MAX_FRAME, Reader, encode
from mm2c_runtime.stub.keeper import Keeper

SERVER = [sys.executable, str(Path(__file__).with_name("toy_server.py"))]
PROMPTS = {str(number): f"prompt {number} " + "xyz" * number for number in range(8)}


class Watch(Listener):
    """A listener that also takes the loss of the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[str] | None = None
        self.gone = threading.Event()

    def disconnected(self, ids: list[str]) -> None:
        assert self.lost is None, "reported twice"
        self.lost = ids
        self.gone.set()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[EngineProcess]:
    engine = EngineProcess("", str(tmp_path / "engine.sock"), command=SERVER)
    engine.start()
    engine.wait_ready(20)
    yield engine
    engine.stop()


def connect(process: EngineProcess, watch: Watch) -> EngineClient:
    client = EngineClient(process.socket_path, watch, watch.disconnected)
    client.connect(5)
    return client


def ask(client: EngineClient, request_id: str, prompt: str, **options: Any) -> None:
    client.submit(request_id, {"text_input": prompt, "stream": True, **options})


def expected(prompt: str, max_tokens: int) -> list[int]:
    engine, listener = toy_engine(ToyExecutor()), Listener()
    engine.submit("a", parse_request({"text_input": prompt, "max_tokens": max_tokens}), listener)
    listener.wait("a")
    engine.close()
    return listener.tokens("a")


def test_two_clients_get_their_own_answers(process: EngineProcess) -> None:
    watches = [Watch(), Watch()]
    clients = [connect(process, watch) for watch in watches]
    assert clients[0].hello["model"] == {"name": "toy"}
    assert clients[0].hello["pid"] == process.pid
    for request_id, prompt in PROMPTS.items():
        ask(clients[int(request_id) % 2], request_id, prompt, max_tokens=20)
    for client in clients:  # the same id at both
        ask(client, "same", "p", max_tokens=4)
    for request_id, prompt in PROMPTS.items():
        watch = watches[int(request_id) % 2]
        assert watch.wait(request_id)["finish_reason"] == "length"
        assert watch.tokens(request_id) == expected(prompt, 20)
        assert request_id not in watches[1 - int(request_id) % 2].events
    assert watches[0].wait("same") == watches[1].wait("same") | {"seed": watches[0].wait("same")["seed"]}
    assert clients[0].stats()["generated_tokens"] == 8 * 20 + 2 * 4
    assert clients[0].ping() < 1
    for client in clients:
        client.close()


def test_refusals_are_error_events_and_hurt_nobody(process: EngineProcess) -> None:
    watch = Watch()
    client = connect(process, watch)
    ask(client, "good", "p", max_tokens=50)
    client.submit("neither", {})
    client.submit("unknown", {"text_input": "p", "max_token": 5})
    client.submit("long", {"text_input": "p" * 500})
    assert watch.wait("neither")["code"] == "INVALID_ARGUMENT"
    assert 'did you mean "max_tokens"' in watch.wait("unknown")["message"]
    assert "500 tokens; the context holds 128" in watch.wait("long")["message"]
    with pytest.raises(RequestError, match="already running"):
        ask(client, "good", "p")
    with pytest.raises(RequestError, match="cannot be sent"):
        client.submit("x", {"text_input": {1, 2}})
    assert watch.wait("good")["finish_reason"] == "length"
    client.close()


def test_cancel_and_goodbye_free_the_rows(process: EngineProcess) -> None:
    watch, other = Watch(), Watch()
    client, leaver = connect(process, watch), connect(process, other)
    ask(client, "a", "p", ignore_eos=True)
    ask(leaver, "b", "q", ignore_eos=True)
    watch.wait("a", ("delta",))
    other.wait("b", ("delta",))
    client.cancel("a")
    assert watch.wait("a")["finish_reason"] == "cancelled"
    leaver.close()
    end = time.monotonic() + 2
    while client.stats()["running"]:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert other.lost is None, "closing is not losing"
    client.close()


def test_kill_is_reported_within_a_second_and_a_new_process_serves(process: EngineProcess) -> None:
    watch = Watch()
    client = connect(process, watch)
    for request_id in "abc":
        ask(client, request_id, "p", ignore_eos=True)
    watch.wait("c", ("delta",))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert watch.gone.wait(1)
    assert watch.lost == ["a", "b", "c"]
    assert process.wait(1) == -signal.SIGKILL
    assert not process.alive
    with pytest.raises(RequestError, match="UNAVAILABLE"):
        ask(client, "d", "p")
    process.start()
    process.wait_ready(20)
    again = connect(process, watch)
    ask(again, "e", "p", max_tokens=5)
    assert watch.wait("e")["finish_reason"] == "length"
    again.close()


def test_sigterm_finishes_what_is_in_flight(process: EngineProcess) -> None:
    watch = Watch()
    client = connect(process, watch)
    ask(client, "a", "p", max_tokens=60, ignore_eos=True)
    watch.wait("a", ("delta",))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)  # a Ctrl-C on the terminal is left to the parent
    os.kill(process.pid, signal.SIGTERM)
    assert watch.wait("a")["finish_reason"] == "length"
    assert process.wait(5) == 0
    assert not Path(process.socket_path).exists()
    assert watch.gone.wait(1)
    assert watch.lost == []


def test_shutdown_message(process: EngineProcess) -> None:
    client = connect(process, Watch())
    client.shutdown()
    assert process.wait(5) == 0


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    starter = f"""
import os, sys
from mm2c_runtime.server.launcher import EngineProcess
engine = EngineProcess("", {str(path)!r}, command={SERVER!r})
engine.start(); engine.wait_ready(20); print(engine.pid, flush=True); os.kill(os.getpid(), 9)
"""
    import subprocess

    run = subprocess.run(
        [sys.executable, "-c", starter], capture_output=True, text=True, timeout=60, check=False
    )
    pid = int(run.stdout)
    end = time.monotonic() + 2
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_process_that_cannot_start_says_so(tmp_path: Path) -> None:
    engine = EngineProcess(
        "", str(tmp_path / "s.sock"), command=[sys.executable, "-c", "raise SystemExit(3)"]
    )
    engine.start()
    with pytest.raises(BundleError, match="exited with status 3 while it started"):
        engine.wait_ready(20)
    engine.stop()
    missing = EngineProcess(str(tmp_path), str(tmp_path / "s.sock"))
    missing.start()
    with pytest.raises(BundleError, match="exited with status 1"):
        missing.wait_ready(30)


@pytest.mark.parametrize("layout", ["installed", "bundle"])
def test_nothing_is_imported_from_the_folder_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """The engine imports all of these before it finds that its bundle is missing."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("tokenizers", "numpy", "pydantic", "argparse", "mm2c_runtime"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})")
    monkeypatch.chdir(here)
    if layout == "bundle":
        package = Path(launcher.__file__).parents[1]
        shutil.copytree(package, tmp_path / "bundle/runtime/mm2c_runtime")
        monkeypatch.setattr(
            "mm2c_runtime.server.child._package", lambda: tmp_path / "bundle/runtime/mm2c_runtime"
        )
    engine = EngineProcess("missing", "s.sock")
    engine.start()
    with pytest.raises(BundleError, match="exited with status 1"):
        engine.wait_ready(30)
    engine.stop()
    assert not (tmp_path / "imported").exists()
    assert engine.socket_path == str(here / "s.sock")


def test_the_engine_is_told_what_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = EngineProcess("b", "s", checksums="sizes", kv_tokens=9)
    options = " ".join(made._command)
    assert "--checksums sizes --kv-tokens 9" in options
    assert f"--bundle {Path.cwd() / 'b'} " in options
    monkeypatch.setenv("MM2C_CHECKSUMS", "sizes")
    keeper = Keeper(tmp_path, tmp_path / "s", None, None, print)  # type: ignore[arg-type]
    assert "--checksums sizes" in " ".join(keeper._process._command)


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100,
        struct.pack("<I", MAX_FRAME + 1),
        encode({"type": "submit", "id": "x", "fields": {}}),
        encode({"type": "hello", "version": 99}),
        struct.pack("<I", 3) + b"[1]",
    ],
)
def test_strangers_are_turned_away(process: EngineProcess, bytes_sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(5)
        stream.connect(process.socket_path)
        stream.sendall(bytes_sent)
        assert Reader(stream).read() is None
    client = connect(process, Watch())
    assert client.ping() < 1
    client.close()


def test_a_socket_that_is_served_is_left_alone(process: EngineProcess) -> None:
    second = EngineProcess("", process.socket_path, command=SERVER)
    second.start()
    with pytest.raises(BundleError, match="exited with status 1"):
        second.wait_ready(20)
    second.stop()
    client = connect(process, Watch())
    assert client.ping() < 1
    client.close()
