"""kill -9 at every joint: requests in flight fail at once, readiness tells the truth, service comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import Served
from tritonclient.utils import InferenceServerException

from mm2c.serve.processes import alive, marked, stubs_of

PATIENCE = 40.0  # seconds on a machine that is busy; an idle one takes two


def _engine_of(server: Served) -> int:
    (pid,) = [
        pid
        for pid in marked("MM2C_SERVE_RUN", str(server.run))
        if b"mm2c_runtime.server.process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return pid


def _within(seconds: float, condition: Callable[[], Any]) -> float:
    """Seconds until ``condition`` held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


def _leftovers(run: Path) -> list[object]:
    """What a stopped server must not leave: processes, its folder with the socket, shared memory."""
    shared = list(Path("/dev/shm").glob(run.name.replace("-", "_") + "*"))
    return [*marked("MM2C_SERVE_RUN", str(run)), *([run] if run.exists() else []), *shared]


def test_killed_engine_fails_its_requests_and_comes_back(server: Served) -> None:
    stream = server.stream(text_input="t", max_tokens=100000)
    parts = iter(stream)
    next(parts)
    assert server.ready() == 200
    blocked = server.run / "engine.sock"
    blocked.rename(server.run / "former.sock")
    blocked.touch()  # no engine can bind it: none comes back until the test says so
    os.kill(_engine_of(server), signal.SIGKILL)
    with pytest.raises(InferenceServerException, match="UNAVAILABLE: the engine process ended"):
        list(parts)
    _within(PATIENCE, lambda: server.ready() == 400)
    status, body = server.post("minimax_m2/generate", text_input="t")
    assert status != 200
    assert "UNAVAILABLE" in body
    blocked.unlink()
    _within(PATIENCE, lambda: server.ready() == 200)
    assert server.generate(text_input="t", max_tokens=2)["text_output"] == "t0 t1 "
    _within(PATIENCE, lambda: server.post("minimax_m2_unary/generate", text_input="t")[0] == 200)


def test_killed_stub_ends_its_streams_and_comes_back(server: Served) -> None:
    events = server.generate_stream(text_input="t", max_tokens=100000)
    next(events)
    engine = _engine_of(server)
    os.kill(stubs_of(server.triton_pid)["minimax_m2"], signal.SIGKILL)
    with contextlib.suppress(OSError, ValueError):  # the connection ends, in one way or another
        list(events)
    _within(PATIENCE, lambda: server.ready() == 200)
    assert not alive(engine)
    assert server.generate(text_input="t", max_tokens=2)["text_output"] == "t0 t1 "
    assert "the stub of minimax_m2 died" in server.errors.read_text()


@pytest.mark.parametrize("model", ["minimax_m2_parse", "minimax_m2_unary", "mm_gate"])
def test_killed_side_stub_is_reloaded_while_streams_go_on(server: Served, model: str) -> None:
    stream = server.stream(text_input="t", max_tokens=300)
    parts = iter(stream)
    text = next(parts)["text_output"]
    before = stubs_of(server.triton_pid)[model]
    os.kill(before, signal.SIGKILL)
    _within(PATIENCE, lambda: stubs_of(server.triton_pid).get(model, before) != before)
    _within(PATIENCE, lambda: server.ready() == 200)
    assert text + "".join(part["text_output"] for part in parts) == "".join(f"t{n} " for n in range(300))


def test_killed_server_is_replaced(server: Served) -> None:
    os.kill(server.triton_pid, signal.SIGKILL)
    _within(PATIENCE, lambda: server.triton_pid not in marked("MM2C_SERVE_RUN", str(server.run)))
    _within(PATIENCE, lambda: server.ready() == 200)
    assert server.generate(text_input="t", max_tokens=2)["text_output"] == "t0 t1 "


def test_ctrl_c_leaves_nothing_behind(server: Served) -> None:
    run = server.run
    assert len(_leftovers(run)) >= 7  # server, four stubs, engine, folder: the check sees what it looks for
    stream = server.stream(text_input="t", max_tokens=100000)
    next(iter(stream))
    assert server.stop(signal.SIGINT) == 0
    assert _leftovers(run) == []


def test_sigterm_is_a_clean_stop_too(server: Served) -> None:
    run = server.run
    assert server.stop(signal.SIGTERM) == 0
    assert _leftovers(run) == []


def test_killed_supervisor_takes_the_server_with_it(
    server: Served, fake_bundle: Path, tmp_path: Path
) -> None:
    run = server.run
    server.process.kill()
    server.process.wait()
    _within(PATIENCE, lambda: not marked("MM2C_SERVE_RUN", str(run)))
    assert run.exists()
    from mm2c.serve.run_directory import sweep

    sweep()  # what the next start does first
    assert _leftovers(run) == []
