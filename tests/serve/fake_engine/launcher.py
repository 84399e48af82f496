"""The fake engine as a child process, with the surface of mm2c_runtime.server.launcher.EngineProcess."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class EngineProcess:
    def __init__(self, bundle_dir: str, socket_path: str) -> None:
        self._socket_path = socket_path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if os.path.exists(self._socket_path):
            os.unlink(self._socket_path)
        program = Path(__file__).with_name("process.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), self._socket_path], preexec_fn=_die_with_parent
        )

    def wait_ready(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError("the fake engine ended while it started")
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(self._socket_path) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError("the fake engine did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if os.path.exists(self._socket_path):
            os.unlink(self._socket_path)
