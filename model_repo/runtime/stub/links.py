"""The stub's links to the engines of several replicas, as one: every request goes to the least busy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import RequestError
from mm2c_runtime.stub.link import EngineLink
from mm2c_runtime.stub.load import Load


class EngineLinks:
    """As ``EngineLink``. A request goes to the connected replica that runs the fewest, those of other stubs counted,
    and stays there: the loss of a replica fails its own requests alone. ``on_down``: one function for each."""

    def __init__(
        self,
        sockets: Sequence[Path],
        on_event: Callable[[dict[str, Any]], None],
        on_failed: Callable[[list[str]], None],
        on_down: Sequence[Callable[[], None]],
        load: Load,
    ) -> None:
        self._on_event, self._on_failed, self._load = on_event, on_failed, load
        self._counting = threading.Lock()
        self._turn = 0
        self.all = [
            EngineLink(socket, partial(self._heard, number), partial(self._failed, number), down)
            for number, (socket, down) in enumerate(zip(sockets, on_down, strict=True))
        ]

    def keep_connected(self) -> None:
        for link in self.all:
            link.keep_connected()

    @property
    def connected(self) -> bool:
        return any(link.connected for link in self.all)

    def submit(self, id: str, fields: dict[str, Any]) -> None:
        """Raises RequestError(UNAVAILABLE) while there is no engine at all."""
        for number in self._order():
            try:
                self.all[number].submit(id, fields)
            except RequestError as error:
                if error.code != "UNAVAILABLE":
                    raise
                continue  # it has just been lost
            finally:
                self._count(number)
            return
        raise RequestError("UNAVAILABLE", "no engine is running; they are being restarted, try again")

    def cancel(self, id: str) -> None:
        for link in self.all:
            if link.runs(id):
                link.cancel(id)

    def close(self) -> None:
        for link in self.all:
            link.close()

    def _order(self) -> list[int]:
        """Connected replicas, the least busy first; equally busy ones take turns."""
        self._turn += 1
        places = [(number + self._turn) % len(self.all) for number in range(len(self.all))]
        return sorted((n for n in places if self.all[n].connected), key=self._load.of)

    def _heard(self, number: int, event: dict[str, Any]) -> None:
        if event["type"] in ("finish", "error"):
            self._count(number)
        self._on_event(event)

    def _failed(self, number: int, ids: list[str]) -> None:
        self._count(number)
        self._on_failed(ids)

    def _count(self, number: int) -> None:
        with self._counting:
            self._load.put(number, self.all[number].in_flight)
