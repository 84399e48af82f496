"""Looking at processes through /proc: who lives, which stubs a server has, and who carries a mark."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

STUB = "triton_python_backend_stub"
ENGINE = b"mm2c_runtime.server.process"  # as its command line names the module

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded here: nothing may be loaded between fork and exec


def start_child(
    command: list[str], environment: dict[str, str], folder: Path, log: BinaryIO
) -> subprocess.Popen[bytes]:
    """A process in a session of its own, so that Ctrl-C in a terminal reaches only the supervisor.

    It gets SIGTERM should the calling thread end without stopping it. ``folder``: where it runs; Python imports from
    there first, so nothing of a stranger may lie in it. ``log`` takes what it says.
    """
    return subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    """Between fork and exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def alive(pid: int) -> bool:
    """Whether ``pid`` runs. A zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def stubs_of(server: int) -> dict[str, int]:
    """Model name to the pid of its stub, for every live stub whose parent is ``server``."""
    found = {}
    for pid in _pids():
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if not arguments[0].endswith(STUB.encode()):
                continue
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == server and alive(pid):
            found[Path(os.fsdecode(arguments[1])).parents[1].name] = pid  # <repository>/<model>/1/model.py
    return found


def marked(variable: str, value: str) -> list[int]:
    """Processes of this user with ``variable=value`` in their environment, this one excepted."""
    mark = f"{variable}={value}".encode()
    found = []
    for pid in _pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if pid != os.getpid() and mark in environment.split(b"\0") and alive(pid):
            found.append(pid)
    return found


def engines(variable: str, value: str) -> list[int]:
    """The engine processes among the marked."""
    found = []
    for pid in marked(variable, value):
        with suppress(OSError):
            if ENGINE in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def kill_marked(variable: str, value: str, timeout: float = 5.0) -> None:
    """SIGKILL every marked process and wait until all are gone, or ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while pids := marked(variable, value):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > end:
            return
        time.sleep(0.02)


def ending(status: int) -> str:
    """What an exit status says: "status 1", or "signal 11 (SIGSEGV)"."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"signal {-status}"


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
