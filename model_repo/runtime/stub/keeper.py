"""The life of the engine process: started with the model, restarted when it dies, ended with the model."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mm2c_runtime.server.launcher import EngineProcess
from mm2c_runtime.stub.gate import Gate
from mm2c_runtime.stub.link import EngineLink
from mm2c_runtime.stub.replicas import Replica

CHECKSUMS_VARIABLE = "MM2C_CHECKSUMS"  # full or sizes; `mm2c serve --no-checksums` sets the latter
START_SECONDS = 3600.0  # a large bundle reads hundreds of GB; a crash is seen at once, not by this limit
BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
DRAIN_SECONDS = 3.0  # Triton has let requests finish by then; what is left has no client
STEADY_SECONDS = 60.0  # an engine that lived this long starts the backoff anew


class Moves(Protocol):
    """The gate, or what of it one replica moves."""

    def clear(self) -> None: ...
    def close(self) -> None: ...
    def open(self) -> None: ...
    def leave(self) -> None: ...


class Keeper:
    """``lost()`` may be called from any thread; restarting happens on the keeper's own. ``replica``: which of several
    it keeps."""

    def __init__(
        self,
        bundle: Path,
        socket: Path,
        link: EngineLink,
        gate: Gate | Moves,
        log: Callable[[str], None],
        replica: Replica | None = None,
    ) -> None:
        checksums = os.environ.get(CHECKSUMS_VARIABLE) or "full"
        share: dict[str, Any] = {}
        if replica is not None:
            share = {"threads": replica.threads, "environment": replica.environment}
        self._process = EngineProcess(str(bundle), str(socket), checksums=checksums, **share)
        self._link, self._gate = link, gate
        self._log = log if replica is None else lambda text: log(f"replica {replica.number}: {text}")
        self._lost = threading.Event()
        self._stopping = threading.Event()
        self._up = threading.Event()
        self._failure: Exception | None = None
        # The engine dies with the thread that spawned it (PDEATHSIG): one thread spawns, and lives longer.
        self._thread = threading.Thread(target=self._run, name="mm2c-engine-keeper", daemon=True)

    def start(self) -> None:
        """Start the engine and wait until it serves. Raises what the launcher raises."""
        self.begin()
        self.wait_up()

    def begin(self) -> None:
        self._gate.clear()
        self._thread.start()

    def wait_up(self) -> None:
        self._up.wait()
        if self._failure is not None:
            raise self._failure

    def lost(self) -> None:
        self._lost.set()

    def ask_to_stop(self) -> None:
        self._stopping.set()
        self._lost.set()
        self._gate.leave()

    def stop(self) -> None:
        self.ask_to_stop()
        self._thread.join(15)

    def _launch(self) -> None:
        self._process.start()
        self._process.wait_ready(START_SECONDS)
        self._link.connect(10.0)

    def _run(self) -> None:
        try:
            self._launch()
        except Exception as error:  # handed to start(), which runs on Triton's thread
            self._failure = error
            self._process.stop(DRAIN_SECONDS)
            return
        finally:
            self._up.set()
        failures = 0
        while True:
            since = time.monotonic()
            self._lost.wait()
            if self._stopping.is_set():
                break
            self._gate.close()
            self._log("the engine process is gone; in-flight requests failed, restarting it")
            if time.monotonic() - since > STEADY_SECONDS:
                failures = 0
            failures = self._restart(failures)
        self._link.close()
        self._process.stop(DRAIN_SECONDS)

    def _restart(self, failures: int) -> int:
        """Start until it holds; the number of attempts since the engine last was steady."""
        while not self._stopping.is_set():
            self._process.stop(DRAIN_SECONDS)
            self._stopping.wait(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])
            failures += 1
            self._lost.clear()
            if self._stopping.is_set():
                self._lost.set()
                break
            try:
                self._launch()
            except (
                Exception
            ) as error:  # whatever kept it from starting, the next attempt is all there is to do
                self._log(f"the engine did not start (attempt {failures}): {error}")
                continue
            self._gate.open()
            self._log("the engine serves again")
            break
        return failures
