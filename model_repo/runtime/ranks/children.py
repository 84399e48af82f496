"""The rank processes as children: started together, waited for together, ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from mm2c_runtime.errors import BundleError
from mm2c_runtime.ranks.messages import Ready, Refused, receive
from mm2c_runtime.server.child import child_environment, python

COMMAND = ("-m", "mm2c_runtime.ranks.worker")  # of the Python interpreter
LOAD_SECONDS = 3600.0  # 57 GB of weights from a cold network disk
END_SECONDS = 5.0


@dataclass(slots=True)
class Child:
    rank: int
    process: subprocess.Popen[bytes]
    connection: Connection


class Children:
    """The rank processes of one bundle. They die with the thread that started them."""

    def __init__(
        self, arguments: Sequence[str], devices: Sequence[str], command: Sequence[str] = COMMAND
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mm2c-ranks-")
        self.all: list[Child] = []
        store = Path(self._folder.name) / "store"
        try:
            for rank, device in enumerate(devices):
                own = ["--rank", str(rank), "--ranks", str(len(devices)), "--device", device]
                self.all.append(_start([*command, *arguments, *own, "--store", str(store)], rank))
        except BaseException:
            self.kill()
            raise

    def ready(self, timeout: float = LOAD_SECONDS) -> list[Ready]:
        """What every rank says once it has loaded. Raises BundleError with the first refusal, after all were
        ended."""
        found: dict[int, Ready] = {}
        end = time.monotonic() + timeout
        waiting = {child.connection: child for child in self.all}
        while waiting:
            heard = wait(list(waiting), max(0.0, end - time.monotonic()))
            if not heard:
                self._refuse(f"ranks {_names(waiting.values())} were not ready after {timeout:g} s")
            for connection in heard:
                assert isinstance(connection, Connection)
                child = waiting.pop(connection)
                try:
                    message = receive(connection)
                except (EOFError, OSError):
                    self._refuse(f"the process of rank {child.rank} {self._ended(child)} while it loaded")
                if isinstance(message, Refused):
                    self.kill()
                    raise BundleError(
                        f"rank {child.rank}: {message.what}", where=message.where, remedy=message.remedy
                    )
                assert isinstance(message, Ready)
                found[child.rank] = message
        return [found[rank] for rank in range(len(self.all))]

    def _refuse(self, what: str) -> None:
        self.kill()
        raise BundleError(
            what, where="the rank processes", remedy="their own messages are in this log, above"
        )

    def _ended(self, child: Child) -> str:
        with suppress(subprocess.TimeoutExpired):
            status = child.process.wait(END_SECONDS)
            return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        return "closed its connection"

    def gone(self, wait: float = 0.0) -> str:
        """Which processes have ended, and how; waits up to ``wait`` seconds for the first to do so."""
        end = time.monotonic() + wait
        while True:
            gone = [child for child in self.all if child.process.poll() is not None]
            if gone or time.monotonic() >= end:
                return "; ".join(f"the process of rank {c.rank} {self._ended(c)}" for c in gone)
            time.sleep(0.01)

    def end(self) -> None:
        """Ask by closing the connections, then kill. Safe to repeat."""
        for child in self.all:
            child.connection.close()
        deadline = time.monotonic() + END_SECONDS
        for child in self.all:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """SIGKILL to all, at once."""
        for child in self.all:
            with suppress(OSError):
                child.process.send_signal(signal.SIGKILL)
        for child in self.all:
            child.process.wait()
            child.connection.close()
        self._folder.cleanup()


def _start(arguments: Sequence[str], rank: int) -> Child:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [python(), *arguments]
        command += ["--descriptor", str(theirs.fileno()), "--parent", str(os.getpid())]
        environment, folder = child_environment()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=folder,
            pass_fds=[theirs.fileno()],
            stdout=sys.stderr,
        )
    return Child(rank, process, Connection(ours.detach()))


def _names(children: Iterable[Child]) -> str:
    return ", ".join(str(child.rank) for child in children)
