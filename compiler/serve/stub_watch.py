"""Noticing that a Python stub died: Triton itself does not, and keeps calling the model ready."""

from __future__ import annotations

from mm2c.serve.control import Control
from mm2c.serve.processes import alive, stubs_of


class StubWatch:
    """Looks at known pids only, which costs microseconds; scans /proc again when one is gone."""

    def __init__(self, server: int, control: Control) -> None:
        self._server = server
        self._control = control
        self._stubs = stubs_of(server)
        self._missing: set[str] = set()

    @property
    def stubs(self) -> dict[str, int]:
        return dict(self._stubs)

    def dead(self) -> list[str]:
        """Models that Triton calls ready although their stub is gone.

        A model that is being unloaded or loaded has no stub either, so one is reported only when it is
        missing at two looks in a row. Raises OSError when the server does not answer.
        """
        gone = {model for model, pid in self._stubs.items() if not alive(pid)} | self._missing
        if not gone:
            return []
        self._stubs = stubs_of(self._server)
        gone -= self._stubs.keys()
        states = self._control.states() if gone else {}
        dead = sorted(model for model in gone & self._missing if states.get(model) == "READY")
        self._missing = gone - set(dead)
        return dead
