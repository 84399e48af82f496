"""One tritonserver process for one bundle: command line, environment, start, readiness, stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mm2c.bundle.carried import TRITON_MODELS
from mm2c.errors import UserError
from mm2c.serve.control import Control
from mm2c.serve.installation import Installation
from mm2c.serve.ports import Ports
from mm2c.serve.processes import ending, engines, kill_marked, start_child, stubs_of
from mm2c.serve.python_environments import environments
from mm2c.serve.run_directory import RunDirectory
from mm2c.serve.secret import blank, new_secret, restrictions
from mm2c_runtime.executors.provider import VARIABLE as PROVIDER_VARIABLE
from mm2c_runtime.memory import VARIABLE as KV_TOKENS_VARIABLE
from mm2c_runtime.openai.api_keys import VARIABLE as API_KEYS_VARIABLE
from mm2c_runtime.selfcheck import VARIABLE as SELF_CHECK_VARIABLE
from mm2c_runtime.server.child import absolute_folders
from mm2c_runtime.stub.keeper import CHECKSUMS_VARIABLE
from mm2c_runtime.stub.model_control import ADDRESS_VARIABLE, SECRET_VARIABLE
from mm2c_runtime.stub.paths import SOCKET_VARIABLE
from mm2c_runtime.weights.checkpoint import VARIABLE as CHECKPOINT_VARIABLE

MARK = "MM2C_SERVE_RUN"  # every process below the server carries it: how orphans are found
LOG_TAIL = 25  # lines shown when a start fails
TELL_SECONDS = 5  # that clients get to hear of the end of what outlived the drain
# Of Triton's log: information, warnings, tables, blank lines, and what it says wherever there is no GPU.
_CHATTER = re.compile(r"[IW]\d{4} |[+|]|\s*$|.*(CudaDriverHelper has not been|Failed to initialize NVML)")


@dataclass(frozen=True)
class Settings:
    """``drain``: seconds that running requests get at a stop before the server ends regardless.

    ``kv_tokens``: the engine's KV-cache budget; None for the bundle's own. ``checksums``: whether the engine
    compares the files' hashes with the manifest, or only their sizes. ``checkpoint``: where the engine reads the
    weights of a bundle that has none. ``self_check``: when the engine is compared with the golden vectors; None for
    ``$MM2C_SELF_CHECK``, else the engine's default. ``provider``: what ONNX Runtime runs on; None for
    ``$MM2C_PROVIDER``, else the CPU.
    """

    bundle: Path
    host: str
    ports: Ports
    log: Path
    drain: int = 5
    verbose: bool = False
    kv_tokens: int | None = None
    checksums: bool = True
    checkpoint: Path | None = None
    self_check: str | None = None
    provider: str | None = None


class Server:
    """Not started yet. ``start``, then ``wait_ready``; ``stop`` always, also after a failure."""

    def __init__(self, installation: Installation, run: RunDirectory, settings: Settings) -> None:
        self._installation, self._run, self._settings = installation, run, settings
        self._secret = new_secret()
        self.control = Control(settings.host, settings.ports.http, self._secret)
        self._process: subprocess.Popen[bytes] | None = None
        self._was_ready = False
        self._log_start = 0  # bytes that the log held before this start
        self._environments: set[str] | None = None  # those of others; None while no start is under way

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        return self._settings.log

    def start(self) -> None:
        self._run.gate_flag.unlink(missing_ok=True)
        self._environments = environments()
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = start_child(self.command(), self.environment(), self._run.path, log)

    def exit_status(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def wait_ready(self, timeout: float, tick: Callable[[], None] = lambda: None) -> None:
        """Raises UserError with the end of the log when the server ends, or ``timeout`` seconds are over."""
        end = time.monotonic() + timeout
        blanked = False
        while not self.control.ready():
            blanked = blanked or (bool(stubs_of(self.pid)) and blank(self.pid, self._secret))
            status = self.exit_status()
            if status is not None:
                raise UserError(
                    f"tritonserver ended while it started ({ending(status)})\n{self.log_tail()}",
                    where=str(self.log),
                    remedy="its errors are above, the whole log is in that file",
                    exit_code=1,
                )
            if time.monotonic() > end:
                raise UserError(
                    f"tritonserver was not ready after {timeout:.0f} s\n{self.log_tail()}",
                    where=str(self.log),
                    remedy="give it longer with --start-timeout, or look into its log",
                    exit_code=1,
                )
            tick()
            time.sleep(0.05)
        if not blanked:
            blank(self.pid, self._secret)
        self._remember_environments()
        self._was_ready = True

    def stop(self) -> None:
        """SIGTERM, let requests finish for ``drain`` seconds, then end those that go on, then kill what is left.

        They are ended by ending their engine: the stub then tells each client so, instead of a cut connection.
        A server that never was ready has nothing to finish, and Triton hears no signal while it loads.
        """
        process = self._process
        if process is not None and process.poll() is None and self._was_ready:
            process.terminate()
            if not self._ends_within(self._settings.drain):
                for pid in engines(MARK, str(self._run.path)):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._ends_within(TELL_SECONDS)
        self.kill()

    def _ends_within(self, seconds: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End the server and everything below it now, and take its shared memory and socket away."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
        kill_marked(MARK, str(self._run.path))
        self._remember_environments()
        self._run.clean()
        for socket in self._run.sockets:
            socket.unlink(missing_ok=True)

    def _remember_environments(self) -> None:
        if self._environments is not None:
            self._run.remember_environments(environments() - self._environments)
            self._environments = None

    def log_tail(self, lines: int = LOG_TAIL) -> str:
        """The last lines since this start that say something: Triton's errors and what its children wrote."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join([line for line in text.splitlines() if not _CHATTER.match(line)][-lines:])

    def command(self) -> list[str]:
        settings, ports = self._settings, self._settings.ports
        return [
            str(self._installation.binary),
            f"--model-repository={settings.bundle / 'model_repository'}",
            f"--backend-directory={self._run.backends}",
            f"--backend-config=python,shm-region-prefix-name={self._run.shared_memory_prefix}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in TRITON_MODELS),
            "--disable-auto-complete-config",
            f"--http-address={settings.host}",
            f"--grpc-address={settings.host}",
            f"--metrics-address={settings.host}",
            f"--http-port={ports.http}",
            f"--grpc-port={ports.grpc}",
            f"--metrics-port={ports.metrics}",
            f"--exit-timeout-secs={settings.drain + TELL_SECONDS}",
            f"--log-verbose={int(settings.verbose)}",
            *restrictions(self._secret),
        ]

    def environment(self) -> dict[str, str]:
        """This process's, with what the Python stub needs: it takes the first python3 on PATH as its own."""
        libraries = [str(p) for p in self._installation.libraries]
        inherited = os.environ.get("LD_LIBRARY_PATH")
        settings = self._settings
        given = {
            KV_TOKENS_VARIABLE: settings.kv_tokens,
            CHECKPOINT_VARIABLE: settings.checkpoint,
            SELF_CHECK_VARIABLE: settings.self_check,
            PROVIDER_VARIABLE: settings.provider,
        }
        return {
            **{name: value for name, value in os.environ.items() if name != API_KEYS_VARIABLE},
            **absolute_folders(os.environ),  # Triton runs in another folder
            CHECKSUMS_VARIABLE: "full" if settings.checksums else "sizes",
            **{name: str(value) for name, value in given.items() if value is not None},
            "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *([inherited] if inherited else [])]),
            SOCKET_VARIABLE: str(self._run.socket),
            ADDRESS_VARIABLE: self.control.address,
            SECRET_VARIABLE: self._secret,
            MARK: str(self._run.path),
        }
