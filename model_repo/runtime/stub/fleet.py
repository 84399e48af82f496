"""The engine processes of all replicas, and when a server that lost some of them is ready."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from mm2c_runtime.stub.gate import Gate
from mm2c_runtime.stub.keeper import Keeper


class ReplicaGate:
    """The gate as one replica moves it. The server is ready while at least one engine serves: a request is answered
    then. It becomes unready with the loss of the last one, and ready again with the first that comes back.

    ``lost``: the replicas without an engine; ``lock``: theirs. All replicas share both, and the gate.
    """

    def __init__(self, gate: Gate, number: int, count: int, lost: set[int], lock: threading.Lock) -> None:
        self._gate, self._number, self._count, self._lost, self._lock = gate, number, count, lost, lock

    def clear(self) -> None:
        self._gate.clear()

    def close(self) -> None:
        with self._lock:
            self._lost.add(self._number)
            if len(self._lost) == self._count:
                self._gate.close()

    def open(self) -> None:
        with self._lock:
            none = len(self._lost) == self._count
            self._lost.discard(self._number)
            if none:
                self._gate.open()

    def leave(self) -> None:
        self._gate.leave()


def replica_gates(gate: Gate, count: int) -> list[Gate | ReplicaGate]:
    """The gate of each replica; of one alone, the gate itself."""
    if count == 1:
        return [gate]
    lost: set[int] = set()
    lock = threading.Lock()
    return [ReplicaGate(gate, number, count, lost, lock) for number in range(count)]


class Fleet:
    def __init__(self, keepers: Sequence[Keeper]) -> None:
        self._keepers = keepers

    def start(self) -> None:
        """Start all engines together and wait until every one serves. Raises what the launcher of one raises, after
        the others were stopped."""
        for keeper in self._keepers:
            keeper.begin()
        try:
            for keeper in self._keepers:
                keeper.wait_up()
        except Exception:
            self.stop()
            raise

    def lost(self, number: int) -> None:
        self._keepers[number].lost()

    def stop(self) -> None:
        for keeper in self._keepers:
            keeper.ask_to_stop()
        for keeper in self._keepers:
            keeper.stop()
