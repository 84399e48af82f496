"""Keeping ``/v2/health/ready`` honest: Triton is ready only while every model is, so one model stands for the
engine.

Closing puts the flag file down and loads ``mm_gate``, which refuses; opening takes the flag away and loads it
again. Needs ``--model-control-mode=explicit``; without it the gate cannot move and says so once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GATE_MODEL = "mm_gate"
RETRY_SECONDS = 0.2
PATIENCE = 30.0  # seconds; Triton refuses model control until its start is complete


class Gate:
    """Moves on a thread of its own; the last wish wins."""

    def __init__(self, pb: Any, flag: Path, log: Callable[[str], None]) -> None:
        self._pb, self._flag, self._log = pb, flag, log
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
                    if time.monotonic() > end:
                        self._log(f"the readiness gate cannot be moved: {error}")
                        return
                    time.sleep(RETRY_SECONDS)

    def _load(self) -> None:
        self._pb.load_model(model_name=GATE_MODEL)

    def _shut(self) -> None:
        self._pb.unload_model(model_name=GATE_MODEL)
        try:
            self._load()
        except Exception:  # refused by the flag, as wanted: the repository index now tells why
            return
        if self._flag.exists():
            raise RuntimeError("mm_gate loaded although its flag is down")
