"""However a server is ended, nothing of it stays: processes, its folder, shared memory, folders in /tmp."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from served import Served
from tritonclient.utils import InferenceServerException

from mm2c.serve.processes import engines, marked, stubs_of
from mm2c.serve.python_environments import environments
from mm2c.serve.run_directory import ENVIRONMENTS, sweep


def _environments_of(server: Served) -> set[str]:
    """Names of the folders in /tmp that the server made."""
    names = set((server.run / ENVIRONMENTS).read_text().split())
    assert names
    assert names <= environments()
    return names


def _leftovers(server: Served, made: set[str]) -> list[object]:
    shared = Path("/dev/shm").glob(server.run.name.replace("-", "_") + "*")
    folder = [server.run] if server.run.exists() else []
    return [*marked("MM2C_SERVE_RUN", str(server.run)), *folder, *shared, *(made & environments())]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_polite_signal_is_a_clean_stop(server: Served, number: int) -> None:
    made = _environments_of(server)
    assert server.stop(number) == 0
    assert _leftovers(server, made) == []
    assert "stopped" in server.errors.read_text()


def test_a_second_ctrl_c_does_not_wait(fake_bundle: Path, tmp_path: Path) -> None:
    server = Served(fake_bundle, tmp_path, "--drain", "60")
    made = _environments_of(server)
    stream = server.stream(text_input="t", max_tokens=1000000)
    next(iter(stream))
    server.process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert server.process.poll() is None  # it waits for the stream
    began = time.monotonic()
    assert server.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 5
    assert _leftovers(server, made) == []
    assert "stopped without waiting" in server.errors.read_text()


def test_a_stream_that_outlives_the_drain_is_told_why(fake_bundle: Path, tmp_path: Path) -> None:
    server = Served(fake_bundle, tmp_path, "--drain", "1")
    made = _environments_of(server)
    stream = iter(server.stream(text_input="t", max_tokens=1000000))
    next(stream)
    server.process.send_signal(signal.SIGINT)
    with pytest.raises(InferenceServerException, match="UNAVAILABLE: the engine process ended"):
        for _ in stream:
            pass
    assert server.process.wait(30) == 0
    assert _leftovers(server, made) == []


def test_ctrl_c_reaches_a_background_job_of_a_shell(fake_bundle: Path, tmp_path: Path) -> None:
    """A non-interactive shell has its background jobs ignore SIGINT."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = Served(fake_bundle, tmp_path)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert server.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("victim", ["engine", "minimax_m2", "server"])
def test_nothing_stays_after_something_was_killed(server: Served, victim: str) -> None:
    first = _environments_of(server)
    os.kill(_pid_of(server, victim), signal.SIGKILL)
    end = time.monotonic() + 3
    while server.ready() == 200 and time.monotonic() < end:
        time.sleep(0.02)
    while server.ready() != 200:
        assert time.monotonic() < end + 15
        time.sleep(0.05)
    time.sleep(0.3)
    made = first | _environments_of(server)
    assert server.stop() == 0
    assert _leftovers(server, made) == []


def _pid_of(server: Served, victim: str) -> int:
    if victim == "server":
        return server.triton_pid
    if victim == "minimax_m2":
        return stubs_of(server.triton_pid)[victim]
    (pid,) = engines("MM2C_SERVE_RUN", str(server.run))
    return pid


def test_what_a_killed_supervisor_left_goes_with_the_next_start(server: Served) -> None:
    made = _environments_of(server)
    server.process.kill()
    server.process.wait()
    end = time.monotonic() + 15
    while marked("MM2C_SERVE_RUN", str(server.run)):
        assert time.monotonic() < end
        time.sleep(0.05)
    sweep()
    assert _leftovers(server, made) == []
