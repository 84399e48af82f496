"""How long work tells that it is alive: stages with a title, a total, and an advance. Silent by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bytes(int):
    """A total in bytes: whoever shows the stage can tell a rate."""


class Stage(Protocol):
    def advance(self, amount: int = 1) -> None: ...


class Progress(Protocol):
    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Stage]:
        """Opens a stage. ``total`` is in the unit that ``advance`` counts (bytes, ranks, layers)."""
        ...

    def note(self, text: str) -> None:
        """One line that stays on the screen."""
        ...


class _QuietStage:
    def advance(self, amount: int = 1) -> None:
        return


class Quiet:
    """Shows nothing; the default of every library call."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Stage]:
        yield _QuietStage()

    def note(self, text: str) -> None:
        return
