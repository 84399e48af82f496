"""Small parts of the stub: joining tool calls, the sockets' names, the gate, the keeper."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_engine import until
from hypothesis import given
from hypothesis import strategies as st

from mm2c_runtime.errors import BundleError
from mm2c_runtime.stub import keeper as keeper_module
from mm2c_runtime.stub.gate import Gate
from mm2c_runtime.stub.keeper import Keeper
from mm2c_runtime.stub.model_control import NoModelControl, OverHttp, ThroughBackend, model_control
from mm2c_runtime.stub.paths import bundle_root, engine_socket, gate_flag
from mm2c_runtime.tool_calls import joined, whole


@given(st.lists(st.tuples(st.text(min_size=1), st.lists(st.text())), max_size=4), st.data())
def test_calls_are_the_same_however_their_deltas_are_cut(calls: Any, data: st.DataObject) -> None:
    deltas: list[dict[str, Any]] = []
    for index, (name, pieces) in enumerate(calls):
        function = {"name": name, "arguments": ""}
        deltas.append({"index": index, "id": f"c{index}", "type": "function", "function": function})
        deltas += [{"index": index, "function": {"arguments": piece}} for piece in pieces]
    cut = data.draw(st.integers(0, len(deltas)))
    expected = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": "".join(pieces)}}
        for i, (name, pieces) in enumerate(calls)
    ]
    assert whole(deltas) == expected
    assert whole([*joined(deltas[:cut]), *joined(deltas[cut:])]) == expected


def test_every_stub_of_a_server_finds_the_same_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("MM2C_ENGINE_SOCKET", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    found = {engine_socket(bundle_root(f"/b/model_repository/{m}")) for m in ("minimax_m2", "mm_gate")}
    assert len(found) == 1
    (socket,) = found
    assert str(os.getppid()) in socket.name
    assert (socket.parent.stat().st_mode & 0o777) == 0o700
    assert engine_socket(Path("/other")) != socket
    monkeypatch.setenv("MM2C_ENGINE_SOCKET", "/run/x.sock")
    assert engine_socket(Path("/b")) == Path("/run/x.sock")
    assert gate_flag(Path("/run/x.sock")) == Path("/run/x.sock.closed")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the socket's folder would be made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("MM2C_ENGINE_SOCKET", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / f"mm2c-{os.getuid()}"


def test_a_folder_that_others_can_reach_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with pytest.raises(BundleError, match=r"open to other users \(mode 0755\)") as error:
        engine_socket(Path("/b"))
    assert str(folder) in str(error.value)
    assert "$XDG_RUNTIME_DIR" in error.value.remedy
    assert "$MM2C_ENGINE_SOCKET" in error.value.remedy
    folder.chmod(0o700)
    assert engine_socket(Path("/b")).parent == folder


def test_a_link_in_place_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a symbolic link or a file"):
        engine_socket(Path("/b"))


def test_a_folder_of_somebody_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    folder.mkdir(mode=0o700)
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    folder.rename(folder.with_name(f"mm2c-{owner + 1}"))
    with pytest.raises(BundleError, match=f"belongs to the user {owner}, not to {owner + 1}"):
        engine_socket(Path("/b"))


def test_the_runtime_folder_of_the_user_comes_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    with pytest.raises(BundleError, match="cannot be made"):
        engine_socket(Path("/b"))
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert engine_socket(Path("/b")).parent == tmp_path / "run" / "mm2c"


class GateTriton:
    """Model control as Triton does it: loading fails while the flag is down, and before its start is done."""

    def __init__(self, flag: Path) -> None:
        self.flag, self.loaded, self.started = flag, True, False
        self.refusal: Exception = RuntimeError("the server is starting")

    def load(self, model: str) -> None:
        self._refuse_early()
        if self.flag.exists():
            raise RuntimeError("refused by the flag")
        self.loaded = True

    def unload(self, model: str) -> None:
        self._refuse_early()
        self.loaded = False

    def _refuse_early(self) -> None:
        if not self.started:
            raise self.refusal


def test_gate_waits_for_tritons_start_and_the_last_wish_wins(tmp_path: Path) -> None:
    triton = GateTriton(tmp_path / "closed")
    gate = Gate(triton, triton.flag, lambda text: None)
    gate.close()
    assert triton.flag.exists()
    time.sleep(0.1)
    assert triton.loaded
    triton.started = True
    until(lambda: not triton.loaded)
    gate.close()
    gate.open()
    until(lambda: triton.loaded)
    time.sleep(0.3)
    assert triton.loaded
    assert not triton.flag.exists()


def test_gate_says_when_it_cannot_move_and_leaves_when_told(tmp_path: Path) -> None:
    said: list[str] = []
    triton = GateTriton(tmp_path / "closed")
    triton.refusal = NoModelControl("no")
    gate = Gate(triton, triton.flag, said.append)
    gate.close()
    until(lambda: said)
    assert "cannot be moved" in said[0]
    triton.refusal = RuntimeError("the server is starting")
    gate.close()
    gate.leave()
    assert not triton.flag.exists()
    triton.started = True
    time.sleep(0.4)
    assert triton.loaded


def test_model_control_is_chosen_by_what_the_server_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MM2C_TRITON_HTTP", raising=False)
    with pytest.raises(NoModelControl, match="--model-control-mode=explicit"):
        model_control(object()).unload("mm_gate")
    sleeper = [sys.executable, "-c", "import time; time.sleep(30)"]
    for words in (["--model-control-mode=explicit"], ["--model-control-mode", "explicit"]):
        with subprocess.Popen([*sleeper, *words]) as server:
            monkeypatch.setattr("os.getppid", lambda server=server: server.pid)
            found = _soon(lambda: model_control(object()), ThroughBackend)
            server.kill()
        assert isinstance(found, ThroughBackend)
    monkeypatch.setenv("MM2C_TRITON_HTTP", "127.0.0.1:1")
    assert isinstance(model_control(object()), OverHttp)


def _soon(make: Any, kind: type) -> Any:
    """The child's command line is that of its parent until it has called exec."""
    end = time.monotonic() + 5
    while not isinstance(made := make(), kind) and time.monotonic() < end:
        time.sleep(0.01)
    return made


class Engine:
    """Stands for EngineProcess; fails to start as often as ``failures`` says."""

    failures = 0
    starts: list[int]

    def __init__(self, bundle: str, socket: str, *, checksums: str) -> None:
        Engine.starts = []

    def start(self) -> None:
        Engine.starts.append(threading.get_ident())

    def wait_ready(self, timeout: float) -> None:
        if Engine.failures:
            Engine.failures -= 1
            raise RuntimeError("it did not start")

    def stop(self, timeout: float) -> None:
        return


class Quiet:
    """Stands for the link and for the gate; counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


def _keeper(monkeypatch: pytest.MonkeyPatch, failures: int) -> tuple[Keeper, Quiet]:
    monkeypatch.setattr(keeper_module, "EngineProcess", Engine)
    monkeypatch.setattr(keeper_module, "BACKOFF_SECONDS", (0.0, 0.01))
    Engine.failures = failures
    gate = Quiet()
    return Keeper(Path("/b"), Path("/s"), Quiet(), gate, lambda text: None), gate  # type: ignore[arg-type]


def test_keeper_restarts_until_the_engine_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, gate = _keeper(monkeypatch, 0)
    keeper.start()
    Engine.failures = 3
    keeper.lost()
    until(lambda: gate.calls == ["clear", "close", "open"])
    assert len(Engine.starts) == 5
    assert len(set(Engine.starts)) == 1  # one thread starts every engine: it dies with its thread
    keeper.stop()


def test_keeper_tells_why_the_first_start_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, _ = _keeper(monkeypatch, 1)
    with pytest.raises(RuntimeError, match="it did not start"):
        keeper.start()
    keeper.stop()
