"""The engine process as a child: started, waited for, ended; started again where it died."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mm2c_runtime.errors import BundleError
from mm2c_runtime.server.child import child_environment, python
from mm2c_runtime.server.client import EngineClient
from mm2c_runtime.server.protocol import remove_stale

_POLL_SECONDS = 0.02


class EngineProcess:
    """One child at a time. It is killed when the THREAD that called ``start`` ends (Linux's parent-death
    signal), so start it from a thread that lives as long as it should. Its log goes to this process's stderr.

    ``checksums``: "full" or "sizes", as ``Bundle.load`` has them. ``command`` replaces the engine's command
    line; it must serve ``socket_path``. ``environment`` is added to this process's. The child runs in the folder of
    this package, not in the one that its parent was started in: Python imports from the working folder, where anything
    may lie.
    """

    def __init__(
        self,
        bundle_dir: str,
        socket_path: str,
        *,
        lowering: str = "fast",
        threads: int | None = None,
        kv_tokens: int | None = None,
        checksums: str = "full",
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.socket_path = os.path.abspath(socket_path)
        if command is None:
            options = {
                "--bundle": os.path.abspath(bundle_dir),
                "--lowering": lowering,
                "--checksums": checksums,
                "--threads": threads,
                "--kv-tokens": kv_tokens,
            }
            command = [python(), "-m", "mm2c_runtime.server.process"]
            for name, value in options.items():
                command += [] if value is None else [name, str(value)]
        self._command = list(command)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the process and returns at once. Raises RuntimeError where one is running, OSError."""
        if self.alive:
            raise RuntimeError(f"the engine process {self.pid} is still running")
        arguments = ["--socket", self.socket_path, "--parent", str(os.getpid())]
        environment, folder = child_environment()
        self._process = subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.DEVNULL,
            env={**environment, **self._environment},
            cwd=folder,
        )

    def wait_ready(self, timeout: float) -> None:
        """Waits until the engine answers on its socket. Raises BundleError where the process ends before, or
        after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if not self.alive:
                raise BundleError(
                    f"the engine process {self._ended()} while it started",
                    where=" ".join(self._command),
                    remedy="its own message is in this log, above",
                )
            if Path(self.socket_path).exists() and self._answers():
                return
            time.sleep(_POLL_SECONDS)
        raise BundleError(f"the engine process was not ready after {timeout:g} s", where=self.socket_path)

    def wait(self, timeout: float | None = None) -> int | None:
        """Exit status of the process (negative: the signal); None where it still runs after ``timeout``
        seconds."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, timeout: float = 12.0) -> None:
        """Lets the process finish what is in flight for ``timeout`` seconds, then kills it. Safe to
        repeat."""
        if self._process is None:
            return
        if self.alive:
            self._process.terminate()
            if self.wait(timeout) is None:
                self.kill()
        self._process.wait()
        self._process = None
        with suppress(BundleError):  # what is no stale socket of ours stays
            remove_stale(Path(self.socket_path))  # there only if the process was killed

    def kill(self) -> None:
        """SIGKILL, at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        client = EngineClient(self.socket_path, lambda event: None)
        try:
            hello = client.connect(1.0)
        except OSError:
            return False
        client.close()
        return bool(hello["pid"] == self.pid)  # or an engine that was there before

    def _ended(self) -> str:
        status = self.wait(0)
        if status is None:
            return "is gone"
        return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
