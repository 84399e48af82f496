"""Builds that end early: crashed and killed workers, Ctrl-C, a full disk. No half-written plan, no process stays."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mm2c.engine.tensorrt.parse import make_logger
from mm2c.engine.tensorrt.worker import CANCELLED
from mm2c.errors import UserError


@pytest.fixture(scope="module")
def library() -> Any:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install '.[rtx]'")
    from mm2c.engine.tensorrt.library import find_library

    return find_library("tensorrt-rtx")


class AtFirstProgress:
    """A progress that does something once, when the first worker tells that it is at work."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def stage(self, title: str, total: int | None = None) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def advance(self, amount: int = 1) -> None:
        act, self._act = self._act, None
        if act is not None and amount:
            act()

    def note(self, text: str) -> None:
        return


def workers() -> list[int]:
    """Processes of this one that build plans."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"tensorrt.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def strike(number: signal.Signals) -> Callable[[], None]:
    def act() -> None:
        for pid in workers():
            os.kill(pid, number)

    return act


@pytest.fixture
def build(library: Any, tmp_path: Path) -> Iterator[Callable[[Callable[[], None]], Any]]:
    from small_plan import linear_job

    from mm2c.engine.tensorrt.build import build_plans

    jobs = [linear_job(tmp_path, f"decode.{i}", rows=16 + i) for i in range(3)]

    def run(act: Callable[[], None]) -> Any:
        return build_plans(jobs, library, progress=AtFirstProgress(act), workers=1)

    yield run
    assert not workers()
    assert {path.suffix for path in tmp_path.iterdir()} == {".onnx"}


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_of_the_library_names_the_plan_and_a_way_out(build: Any, number: signal.Signals) -> None:
    with pytest.raises(UserError, match=rf"crashed \({number.name}\) while it built plan decode.0") as ended:
        build(strike(number))
    assert "--layers-per-plan" in ended.value.remedy
    assert "(phase: " in ended.value.what


def test_a_killed_worker_points_at_memory(build: Any) -> None:
    with pytest.raises(
        UserError, match=r"built plan decode.0 was killed \(SIGKILL\) with \d+ MiB in memory"
    ) as ended:
        build(strike(signal.SIGKILL))
    assert "ran out of memory" in ended.value.remedy


def test_ctrl_c_ends_the_workers(build: Any) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build(lambda: os.kill(os.getpid(), signal.SIGINT))
    assert time.monotonic() - began < 10


def test_a_full_disk_is_said(build: Any) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # of every file, the workers' too
    try:
        with pytest.raises(
            UserError, match=r"the disk is full .* plan decode.0 could not be written"
        ) as ended:
            build(lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "-o" in ended.value.remedy


def test_a_worker_ends_with_a_build_that_is_killed(library: Any, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "from mm2c.engine.tensorrt.processes import COMMAND\n"
        "worker = subprocess.Popen([sys.executable, '-c', COMMAND], stdin=subprocess.PIPE)\n"
        "print(worker.pid, flush=True)\n"
        "worker.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout is not None
        worker = int(build.stdout.readline())
        until = time.monotonic() + 20
        # caught signals: SIGTERM among them once the worker is ready
        while not ready(worker) and time.monotonic() < until:
            time.sleep(0.05)
        build.kill()
    while Path(f"/proc/{worker}").exists() and not zombie(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists() or zombie(worker)


def ready(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_sigterm_ends_a_worker_in_order(library: Any, tmp_path: Path) -> None:
    from small_plan import linear_job

    from mm2c.engine.tensorrt.build import _task
    from mm2c.engine.tensorrt.processes import COMMAND

    task = json.dumps(_task(linear_job(tmp_path), library))
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(task)
        worker.stdin.close()
        assert json.loads(worker.stdout.readline())["phase"] == "parsed"
        worker.send_signal(signal.SIGTERM)
        assert not any("done" in json.loads(line) for line in worker.stdout)
    assert worker.returncode == CANCELLED
    assert [path.name for path in tmp_path.iterdir()] == ["decode.0.onnx"]


def test_the_library_stops_at_the_step_that_says_so(library: Any, tmp_path: Path) -> None:
    from small_plan import linear_graph

    from mm2c.engine.tensorrt.monitor import Stop, make_monitor
    from mm2c.engine.tensorrt.parse import parse_network

    trt, stop = library.load(), Stop()
    parsed = parse_network(trt, linear_graph(), make_logger(trt, lambda severity, text: None))
    config = parsed.builder.create_builder_config()
    profile = parsed.builder.create_optimization_profile()
    profile.set_shape("x", (1, 256), (4, 256), (4, 256))
    config.add_optimization_profile(profile)
    phases: list[str] = []

    def told(share: float, phase: str) -> None:
        phases.append(phase)
        stop.asked = stop.asked or phase == "Building engine from subgraph"

    monitor = make_monitor(trt, told, stop)
    config.progress_monitor = monitor
    assert parsed.builder.build_serialized_network(parsed.network, config) is None
    assert stop.asked
    assert phases[-1] == "Building engine"  # every phase was finished
    del monitor
