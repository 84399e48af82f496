"""Finding Triton, ports, the run directory, and what the supervisor decides: no server is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mm2c.errors import UserError
from mm2c.serve import installation
from mm2c.serve.installation import Installation, find_triton, libpython_folder
from mm2c.serve.ports import choose_ports
from mm2c.serve.processes import alive, kill_marked, marked
from mm2c.serve.run_directory import PREFIX, RunDirectory, sweep
from mm2c.serve.server import Server, Settings
from mm2c.serve.supervisor import CRASHES, Supervisor

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def _triton(root: Path, stub: str = f"python_backend_stubs/{VERSION}") -> Path:
    files = ("bin/tritonserver", "backends/python/libtriton_python.so", f"{stub}/triton_python_backend_stub")
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_named_triton_by_folder_and_by_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _triton(tmp_path / "t")
    assert find_triton(root).root == root
    assert find_triton(root / "bin" / "tritonserver").stub.parent.name == VERSION
    monkeypatch.setenv("MM2C_TRITON", str(root))
    assert (find_triton().root, find_triton().source) == (root, "$MM2C_TRITON")


def test_container_layout_has_its_stub_beside_the_library(tmp_path: Path) -> None:
    root = _triton(tmp_path, "backends/python")
    assert find_triton(root).stub == root / "backends/python/triton_python_backend_stub"


def test_no_stub_for_this_python(tmp_path: Path) -> None:
    _triton(tmp_path, "python_backend_stubs/3.8")
    with pytest.raises(UserError, match=rf"no Python stub for Python {VERSION} \(it has: 3\.8\)"):
        find_triton(tmp_path)


def test_no_triton_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MM2C_TRITON", raising=False)
    monkeypatch.setattr(installation, "wheel_root", lambda: None)
    monkeypatch.setattr(installation, "CONTAINER", tmp_path)
    with pytest.raises(UserError, match="no tritonserver was found") as error:
        find_triton()
    assert "pip install '.[cpu,serve]'" in error.value.remedy
    assert "--triton PATH" in error.value.remedy
    with pytest.raises(UserError, match="no tritonserver installation"):
        find_triton(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("libc", "numpy", "reason"),
    [
        (("glibc", "2.31"), "1.26.4", "glibc 2.35 or newer"),
        (("glibc", "2.36"), "2.1.0", "dies on text tensors"),
    ],
)
def test_what_the_wheel_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, libc: tuple[str, str], numpy: str, reason: str
) -> None:
    monkeypatch.delenv("MM2C_TRITON", raising=False)
    monkeypatch.setattr(installation, "wheel_root", lambda: tmp_path)
    monkeypatch.setattr("platform.libc_ver", lambda: libc)
    monkeypatch.setattr("importlib.metadata.version", lambda name: numpy)
    with pytest.raises(UserError, match=reason):
        find_triton()


def test_libpython_is_looked_for_where_python_is_installed() -> None:
    folder = libpython_folder()
    assert folder is None or any(folder.glob(f"libpython{VERSION}.so*"))


def test_ports() -> None:
    ports = choose_ports("127.0.0.1", 0, 0, 0)
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {number} cannot be used: address already in use") as error:
            choose_ports("127.0.0.1", 0, 0, number)
        assert "--metrics-port" in error.value.where
    with pytest.raises(UserError, match="cannot be used"):
        choose_ports("127.0.0.1", ports.http, ports.http, 0)  # the same port twice
    with pytest.raises(UserError, match="no address"):
        choose_ports("no such host.invalid", 0, 0, 0)
    with pytest.raises(UserError, match="does not listen on IPv6"):
        choose_ports("::1", 0, 0, 0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr("mm2c.serve.run_directory._short_temporary_folder", lambda: tmp_path)
    monkeypatch.setattr("mm2c.serve.run_directory.SHARED_MEMORY", tmp_path)
    return RunDirectory(find_triton(_triton(tmp_path / "triton")))


def test_run_directory_goes_with_its_shared_memory(run: RunDirectory, tmp_path: Path) -> None:
    backend = run.backends / "python"
    assert sorted(p.name for p in backend.iterdir()) == ["libtriton_python.so", "triton_python_backend_stub"]
    assert all(p.is_symlink() for p in backend.iterdir())
    ours, others = tmp_path / f"{run.shared_memory_prefix}1", tmp_path / "someone_else"
    ours.touch()
    others.touch()
    run.remove()
    assert (run.path.exists(), ours.exists(), others.exists()) == (False, False, True)


def test_sweep_removes_what_dead_supervisors_left(run: RunDirectory, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f"{PREFIX}{dead.pid}-abc"
    left.mkdir()
    (tmp_path / f"mm2c_serve_{dead.pid}_abc_region").touch()
    sweep()
    assert not left.exists()
    assert not list(tmp_path.glob("*_abc_region"))
    assert run.path.exists()  # its supervisor, this process, lives


def test_marked_processes_are_found_and_killed() -> None:
    environment = {**os.environ, "MM2C_SERVE_RUN": "/a/test"}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
    assert marked("MM2C_SERVE_RUN", "/a/test") == [child.pid]
    assert marked("MM2C_SERVE_RUN", "/a/tes") == []
    kill_marked("MM2C_SERVE_RUN", "/a/test")
    assert not alive(child.pid)
    child.wait()


def test_command_and_environment(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MM2C_SELF_CHECK", "MM2C_KV_TOKENS", "MM2C_CHECKPOINT_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    found = Installation(tmp_path / "triton", tmp_path / "stub", (Path("/libs"),), "test")
    settings = Settings(tmp_path, "127.0.0.1", choose_ports("127.0.0.1", 0, 0, 0), tmp_path / "log")
    server = Server(found, run, settings)
    assert "--model-control-mode=explicit" in server.command()
    assert "--load-model=mm_gate" in server.command()
    environment = server.environment()
    assert environment["PATH"].startswith(str(Path(sys.prefix) / "bin"))
    assert environment["LD_LIBRARY_PATH"].split(":")[0] == "/libs"
    assert environment["MM2C_ENGINE_SOCKET"] == str(run.socket)
    unset = {"MM2C_SELF_CHECK", "MM2C_KV_TOKENS", "MM2C_CHECKPOINT_FOLDER", "MM2C_PROVIDER"}
    assert not unset & environment.keys()
    asked = replace(settings, self_check="always", kv_tokens=64, checkpoint=tmp_path, provider="cuda")
    environment = Server(found, run, asked).environment()
    assert environment["MM2C_SELF_CHECK"] == "always"
    assert environment["MM2C_KV_TOKENS"] == "64"
    assert environment["MM2C_PROVIDER"] == "cuda"
    assert environment["MM2C_CHECKPOINT_FOLDER"] == str(tmp_path)


def test_log_tail_leaves_out_tritons_chatter(run: RunDirectory, tmp_path: Path) -> None:
    settings = Settings(tmp_path, "127.0.0.1", choose_ports("127.0.0.1", 0, 0, 0), tmp_path / "log")
    chatter = "I1121 12:00:00 fine\n+---+\n| a |\n\nW1121 hm\n"
    settings.log.write_text(f"{chatter}E1121 12:00:01 broken\nTraceback\n{chatter}")
    server = Server(find_triton(tmp_path / "triton"), run, settings)
    assert server.log_tail() == "E1121 12:00:01 broken\nTraceback"


class ServerDouble:
    """What the supervisor asks of a server; ``status`` None while it lives."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.calls: list[str] = []
        self.control = self
        self.pid = os.getpid()
        self.log = Path("/the/log")

    def exit_status(self) -> int | None:
        return self.status

    def start(self) -> None:
        self.calls.append("start")
        self.status = None

    def wait_ready(self, timeout: float, tick: Any) -> None:
        return

    def kill(self) -> None:
        self.calls.append("kill")

    def log_tail(self) -> str:
        return "the log"

    def unload(self, model: str) -> bool:
        self.calls.append(f"unload {model}")
        return True

    def load(self, model: str) -> bool:
        self.calls.append(f"load {model}")
        return True


class WatchDouble:
    def __init__(self, dead: list[str]) -> None:
        self._dead = dead

    def dead(self) -> list[str]:
        found, self._dead = self._dead, []
        return found


@pytest.fixture
def supervised() -> tuple[Supervisor, ServerDouble]:
    server = ServerDouble()
    supervisor = Supervisor(server, lambda text: None, 1.0)  # type: ignore[arg-type]
    supervisor.start()
    server.calls.clear()
    return supervisor, server


def test_engine_stub_replaces_the_server(supervised: tuple[Supervisor, ServerDouble]) -> None:
    supervisor, server = supervised
    supervisor._watch = WatchDouble(["minimax_m2", "mm_gate"])  # type: ignore[assignment]
    supervisor.look()
    assert server.calls == ["kill", "start"]


def test_side_stub_is_reloaded(supervised: tuple[Supervisor, ServerDouble]) -> None:
    supervisor, server = supervised
    supervisor._watch = WatchDouble(["minimax_m2_parse"])  # type: ignore[assignment]
    supervisor.look()
    assert server.calls == ["unload minimax_m2_parse", "load minimax_m2_parse"]


def test_a_server_that_keeps_dying_is_given_up(supervised: tuple[Supervisor, ServerDouble]) -> None:
    supervisor, server = supervised
    for _ in range(CRASHES):
        server.status = -9
        supervisor.look()
    assert server.calls == ["kill", "start"] * CRASHES
    server.status = -9
    with pytest.raises(UserError, match=r"giving up\nthe log") as error:
        supervisor.look()
    assert "signal 9 (SIGKILL)" in error.value.what
    assert error.value.where == "/the/log"
