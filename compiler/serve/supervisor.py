"""Keeping a server well until it is told to stop.

Triton does not notice when a Python stub dies: it goes on calling itself ready, and requests in flight hang.
So the supervisor watches the stubs. Which remedy depends on what was lost with the stub:

- minimax_m2: its engine died with it, and with the engine every generation in flight. The whole server is
  replaced: clients get a closed connection at once instead of waiting for ever, and refused connections are
  honest unreadiness.
- any other model: unload and load, a third of a second, while streams go on.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable

from mm2c.errors import UserError
from mm2c.serve.processes import ending
from mm2c.serve.server import Server
from mm2c.serve.stub_watch import StubWatch

LOOK_SECONDS = 0.2
ENGINE_MODEL = "minimax_m2"
CRASHES = 5  # server losses within CRASH_WINDOW after which the supervisor gives up
CRASH_WINDOW = 120.0  # seconds


class Supervisor:
    """``note`` gets one line for everything worth a user's attention."""

    def __init__(self, server: Server, note: Callable[[str], None], start_timeout: float) -> None:
        self._server, self._note, self._start_timeout = server, note, start_timeout
        self._losses: list[float] = []

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Returns when the server is ready. Raises UserError when it does not become so."""
        self._server.start()
        self._server.wait_ready(self._start_timeout, tick)
        self._watch = StubWatch(self._server.pid, self._server.control)

    def run(self) -> None:
        """Watch for ever; ends by an exception: KeyboardInterrupt, or UserError after repeated crashes."""
        while True:
            time.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Look once, and mend what is broken."""
        status = self._server.exit_status()
        if status is not None:
            return self._replace(f"tritonserver ended by itself ({ending(status)})")
        try:
            dead = self._watch.dead()
        except (OSError, http.client.HTTPException):
            return None  # busy or ending; the next look tells
        if ENGINE_MODEL in dead:
            return self._replace(f"the stub of {ENGINE_MODEL} died, and its engine with it")
        for model in dead:
            self._reload(model)
        return None

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        self._server.kill()

    def _replace(self, why: str) -> None:
        now = time.monotonic()
        self._losses = [t for t in self._losses if now - t < CRASH_WINDOW] + [now]
        if len(self._losses) > CRASHES:
            raise UserError(
                f"{why}; it is the {len(self._losses)}th loss within {CRASH_WINDOW:.0f} s, giving up\n"
                f"{self._server.log_tail()}",
                where=str(self._server.log),
                remedy="its last errors are above, the whole log is in that file",
                exit_code=1,
            )
        self._note(f"{why}; replacing the server (log: {self._server.log})")
        self._server.kill()
        self.start()
        self._note(f"ready again after {time.monotonic() - now:.1f} s")

    def _reload(self, model: str) -> None:
        self._note(f"the stub of {model} died; loading the model again")
        try:
            self._server.control.unload(model)
            loaded = self._server.control.load(model)
        except (OSError, http.client.HTTPException) as error:
            self._note(f"{model} could not be loaded again: {error}")
            return
        self._note(f"{model} serves again" if loaded else f"{model} could not be loaded again; see the log")
