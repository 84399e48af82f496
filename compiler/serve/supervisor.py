"""Keeping a server well until it is told to stop.

Triton does not notice when a Python stub dies: it goes on calling itself ready, and requests in flight hang.
So the supervisor watches the stubs. Which remedy depends on what was lost with the stub:

- minimax_m2: its engine died with it, and with the engine every generation in flight. The whole server is
  replaced: clients get a closed connection at once instead of waiting for ever, and refused connections are
  honest unreadiness.
- any other model: unload and load, a third of a second, while streams go on.

The OpenAI-compatible front, where there is one, is watched too: one that died is started again.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable

from mm2c.errors import UserError
from mm2c.serve.openai_front import OpenAIFront
from mm2c.serve.processes import ending
from mm2c.serve.server import Server
from mm2c.serve.stub_watch import StubWatch

LOOK_SECONDS = 0.2
ENGINE_MODEL = "minimax_m2"
CRASHES = 5  # losses of the server, or of the front, within CRASH_WINDOW after which the supervisor gives up
CRASH_WINDOW = 120.0  # seconds


class Supervisor:
    """``note`` gets one line for everything worth a user's attention."""

    def __init__(
        self,
        server: Server,
        note: Callable[[str], None],
        start_timeout: float,
        front: OpenAIFront | None = None,
    ) -> None:
        self._server, self._note, self._start_timeout, self._front = server, note, start_timeout, front
        self._losses: dict[str, list[float]] = {"server": [], "front": []}

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Returns when the server and the front are ready. Raises UserError when they do not become so."""
        front = self._front
        if front is None:
            return self._start_server(tick)

        def tick_both() -> None:
            tick()
            front.check_runs(self._server.log_tail)

        front.start()  # beside the server's start, which takes longer
        self._start_server(tick_both)
        return front.wait_ready(self._server.log_tail)

    def _start_server(self, tick: Callable[[], None] = lambda: None) -> None:
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
        self._look_at_front()
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
        """The front first: what it has taken in ends with the server's drain, nothing new comes."""
        if self._front is not None:
            self._front.terminate()
        self._server.stop()
        if self._front is not None:
            self._front.stop()

    def kill(self) -> None:
        if self._front is not None:
            self._front.kill()
        self._server.kill()

    def _look_at_front(self) -> None:
        front = self._front
        if front is not None and (status := front.exit_status()) is not None:
            why = f"the OpenAI front ended by itself ({ending(status)})"
            self._count("front", why)
            self._note(f"{why}; starting it again (log: {self._server.log})")
            front.start()

    def _replace(self, why: str) -> None:
        began = time.monotonic()
        self._count("server", why)
        self._note(f"{why}; replacing the server (log: {self._server.log})")
        self._server.kill()
        self._start_server(self._look_at_front)
        self._note(f"ready again after {time.monotonic() - began:.1f} s")

    def _count(self, what: str, why: str) -> None:
        """Raises UserError where ``what`` has been lost too often."""
        now = time.monotonic()
        losses = [t for t in self._losses[what] if now - t < CRASH_WINDOW] + [now]
        self._losses[what] = losses
        if len(losses) > CRASHES:
            raise UserError(
                f"{why}; it is the {len(losses)}th loss within {CRASH_WINDOW:.0f} s, giving up\n"
                f"{self._server.log_tail()}",
                where=str(self._server.log),
                remedy="its last errors are above, the whole log is in that file",
                exit_code=1,
            )

    def _reload(self, model: str) -> None:
        self._note(f"the stub of {model} died; loading the model again")
        try:
            self._server.control.unload(model)
            loaded = self._server.control.load(model)
        except (OSError, http.client.HTTPException) as error:
            self._note(f"{model} could not be loaded again: {error}")
            return
        self._note(f"{model} serves again" if loaded else f"{model} could not be loaded again; see the log")
