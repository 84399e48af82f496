"""Keeping ``/v2/health/ready`` honest: Triton is ready while all models are, so one stands for the engine.

Closing puts the flag file down, unloads ``mm_gate`` and loads it again, which the flag makes it refuse: a
model that failed to load keeps the server unready, one that was merely unloaded does not. Opening takes the
flag away and loads. Needs ``--model-control-mode=explicit``; without it the gate cannot move and says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from mm2c_runtime.stub.model_control import ModelControl, NoModelControl

GATE_MODEL = "mm_gate"
RETRY_SECONDS = 0.2
PATIENCE = 30.0  # seconds; Triton refuses model control until its start is complete


class Gate:
    """Moves on a thread of its own; the last wish wins."""

    def __init__(self, control: ModelControl, flag: Path, log: Callable[[str], None]) -> None:
        self._control, self._flag, self._log = control, flag, log
        self._wish = 0
        self._moving = threading.Lock()

    def clear(self) -> None:
        """Take a stale flag away before Triton loads the gate for the first time."""
        self._flag.unlink(missing_ok=True)

    def close(self) -> None:
        self._flag.touch()
        self._start(self._shut)

    def open(self) -> None:
        self._flag.unlink(missing_ok=True)
        self._start(self._load)

    def leave(self) -> None:
        """Give up every wish: the server is ending, and model control would meet it half gone."""
        self._wish += 1
        self._flag.unlink(missing_ok=True)
        if self._moving.acquire(timeout=2):
            self._moving.release()

    def _start(self, move: Callable[[], None]) -> None:
        self._wish += 1
        threading.Thread(target=self._until, args=(move, self._wish), name="mm2c-gate", daemon=True).start()

    def _until(self, move: Callable[[], None], wish: int) -> None:
        end = time.monotonic() + PATIENCE
        with self._moving:
            while wish == self._wish:
                try:
                    move()
                    return
                except Exception as error:  # Triton raises its own exception type, unknown outside a stub
                    if isinstance(error, NoModelControl) or time.monotonic() > end:
                        self._log(f"the readiness gate cannot be moved: {error}")
                        return
                    time.sleep(RETRY_SECONDS)

    def _load(self) -> None:
        self._control.load(GATE_MODEL)

    def _shut(self) -> None:
        self._control.unload(GATE_MODEL)
        try:
            self._load()
        except Exception:  # refused by the flag, as wanted: the repository index now tells why
            return
        if self._flag.exists():
            raise RuntimeError("mm_gate loaded although its flag is down")
