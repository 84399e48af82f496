"""The OpenAI-compatible front as a child process: command line, environment, start, readiness, stop.

It is the bundle's own ``mm2c_runtime.openai``, so that it and the engine are of one version, in this environment.
It knows Triton by its gRPC address only, and outlives a Triton that is replaced: its clients get 503 meanwhile.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mm2c.errors import UserError
from mm2c.serve.processes import ending, start_child
from mm2c_runtime.openai.api_keys import VARIABLE as KEYS_VARIABLE

NEEDED = ("fastapi", "uvicorn", "tritonclient", "grpc")
MARK = "MM2C_SERVE_FRONT"  # in its environment: the run directory of its supervisor
START_SECONDS = 60.0  # to import and listen, on a busy machine
END_SECONDS = 2.0  # to tell the clients, once Triton has ended


@dataclass(frozen=True)
class FrontSettings:
    """``triton``: host:port of gRPC. ``keys``: API keys, separated by commas; None lets everybody in.

    ``drain``: seconds that running requests get at a stop.
    """

    bundle: Path
    host: str
    port: int
    triton: str
    metrics_url: str
    models: tuple[str, ...]
    log: Path
    keys: str | None = field(default=None, repr=False)
    system_fingerprint: str | None = None
    max_model_len: int | None = None
    drain: int = 5
    verbose: bool = False

    @property
    def url(self) -> str:
        """What clients take as their base URL."""
        return f"http://{in_url(reachable(self.host))}:{self.port}/v1"

    @property
    def about(self) -> str:
        key = "no API key" if self.keys is None else "with an API key"
        return f"model {', '.join(self.models)}; {key}"


class OpenAIFront:
    """Not started yet. ``start``, then ``wait_ready``; ``stop`` or ``kill`` always, also after a failure."""

    def __init__(self, settings: FrontSettings, folder: Path) -> None:
        """``folder``: the run directory, which nobody else can write to: Python imports from where it runs."""
        self._settings, self._folder = settings, folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self._settings.log.open("ab") as log:
            self._process = start_child(self.command(), self.environment(), self._folder, log)

    def exit_status(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def wait_ready(self, log_tail: Callable[[], str], timeout: float = START_SECONDS) -> None:
        """Until /health answers 200. Raises UserError with the end of the log when it does not."""
        end = time.monotonic() + timeout
        while not self.healthy():
            self.check_runs(log_tail)
            if time.monotonic() > end:
                raise self._failure(f"was not ready after {timeout:.0f} s", log_tail)
            time.sleep(0.05)

    def check_runs(self, log_tail: Callable[[], str]) -> None:
        """Raises UserError, as ``wait_ready``, where it has ended."""
        status = self.exit_status()
        if status is not None:
            raise self._failure(f"ended ({ending(status)})", log_tail)

    def _failure(self, how: str, log_tail: Callable[[], str]) -> UserError:
        return UserError(
            f"the OpenAI front {how}\n{log_tail()}",
            where=str(self._settings.log),
            remedy="its errors are above, the whole log is in that file",
            exit_code=1,
        )

    def healthy(self) -> bool:
        host = reachable(self._settings.host)
        connection = http.client.HTTPConnection(host, self._settings.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def terminate(self) -> None:
        """Take no more requests, and end when those that run have ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """Behind ``terminate``, when Triton has ended: what still waits for a client is cut."""
        if self._process is not None:
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()

    def command(self) -> list[str]:
        settings = self._settings
        command = [sys.executable, "-m", "mm2c_runtime.openai"]
        command += ["--triton", settings.triton, "--metrics-url", settings.metrics_url]
        command += ["--host", settings.host, "--port", str(settings.port), "--drain", str(settings.drain)]
        for name in settings.models:
            command += ["--served-model-name", name]
        if settings.system_fingerprint is not None:
            command += ["--system-fingerprint", settings.system_fingerprint]
        if settings.max_model_len is not None:
            command += ["--max-model-len", str(settings.max_model_len)]
        return [*command, *(["--verbose"] if settings.verbose else [])]

    def environment(self) -> dict[str, str]:
        runtime = str(self._settings.bundle / "runtime")
        inherited = os.environ.get("PYTHONPATH")
        own = {"PYTHONPATH": os.pathsep.join([runtime, *([inherited] if inherited else [])])}
        if self._settings.keys is not None:
            own[KEYS_VARIABLE] = self._settings.keys
        given = {name: value for name, value in os.environ.items() if name != KEYS_VARIABLE}
        return {**given, **own, MARK: str(self._folder)}


def check_front(bundle: Path) -> None:
    """Raises UserError where the front cannot run: packages are missing, or the bundle is older than it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the OpenAI front needs packages that are not installed: {', '.join(missing)}",
            where=sys.prefix,
            remedy="pip install '.[serve]' in the folder of mm2c's sources, or leave --openai-port out",
        )
    if not (bundle / "runtime" / "mm2c_runtime" / "openai" / "__main__.py").is_file():
        raise UserError(
            "the bundle was built by an mm2c that had no OpenAI front",
            where=str(bundle),
            remedy="build it again, or leave --openai-port out",
        )


def reachable(host: str) -> str:
    """An address of this machine at which a server that listens on ``host`` answers."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
