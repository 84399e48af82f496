"""Threads that make units: each takes the next one in order, and none runs far ahead of the slowest."""

from __future__ import annotations

import gc
import os
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mm2c.weights.commit import Commits
from mm2c.weights.outputs import Assembly
from mm2c.weights.plan import Piece, Plan, Unit
from mm2c.weights.pour import CODES, pour
from mm2c.weights.sources import Sources, Unshared
from mm2c_runtime.weights.evaluate import Region, TensorReader, evaluate
from mm2c_runtime.weights.recipe import ITEMSIZE, Computed

THREADS = min(8, (os.cpu_count() or 1) + 3)  # more than cores: some wait for the disk
_AHEAD = 2 * THREADS  # units begun or read ahead beyond the oldest that is not done
_BOX = 16 << 20  # bytes of the checkpoint that a tall piece holds at once, about

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Turn:
    number: int
    unit: Unit
    wanted_later: set[str]


def run_units(plan: Plan, assembly: Assembly, sources: Sources, unshared: Unshared, commits: Commits) -> None:
    """Make every unit of the plan. The first failure of a thread ends them all and is raised.

    The cycle collector rests meanwhile: it would go through the model's whole expression trees again and again for
    the small values made here, none of which are in cycles.
    """
    turns = _Turns(plan, sources)
    worker = _Worker(turns, assembly, sources, unshared, commits)
    threads = [threading.Thread(target=worker.run, name=f"weights {i}", daemon=True) for i in range(THREADS)]
    collects = gc.isenabled()
    gc.disable()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C
        turns.fail(error)
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    finally:
        if collects:
            gc.enable()
    if turns.error is not None:
        raise turns.error


class _Turns:
    """Hands out units in order; a unit waits while the oldest that runs is too far behind it."""

    def __init__(self, plan: Plan, sources: Sources) -> None:
        self._plan, self._sources = plan, sources
        self._groups: Iterator[tuple[int, list[Unit]]] = plan.groups()
        self._ready: deque[_Turn] = deque()
        self._running: set[int] = set()
        self._planned = 0
        self._change = threading.Condition()
        self.error: BaseException | None = None

    def next(self) -> _Turn | None:
        with self._change:
            while True:
                if self.error is not None or not self._look_ahead():
                    return None
                if not self._running or self._ready[0].number - min(self._running) < _AHEAD:
                    break
                self._change.wait()
            turn = self._ready.popleft()
            self._running.add(turn.number)
            ahead = self._ready[min(THREADS, len(self._ready)) - 1] if self._ready else None
        if ahead is not None and ahead.unit.blocks:
            self._sources.announce(ahead.unit.blocks)
        return turn

    def done(self, turn: _Turn) -> None:
        with self._change:
            self._running.discard(turn.number)
            self._change.notify_all()

    def fail(self, error: BaseException) -> None:
        with self._change:
            self.error = self.error or error
            self._change.notify_all()

    def _look_ahead(self) -> bool:
        """Plan until some units are ready; False where there are none left."""
        while len(self._ready) < _AHEAD:
            found = next(self._groups, None)
            if found is None:
                break
            group, units = found
            for unit in units:
                self._sources.expect(unit.blocks)
                self._ready.append(_Turn(self._planned, unit, self._plan.wanted_later(unit, group)))
                self._planned += 1
        return bool(self._ready)


class _Worker:
    def __init__(
        self, turns: _Turns, assembly: Assembly, sources: Sources, unshared: Unshared, commits: Commits
    ) -> None:
        self._turns, self._assembly, self._commits = turns, assembly, commits
        self._sources, self._unshared = sources, unshared

    def run(self) -> None:
        try:
            while (turn := self._turns.next()) is not None:
                self._make(turn.unit)
                self._sources.release(turn.unit.blocks, turn.wanted_later)
                self._turns.done(turn)
        except BaseException as error:
            self._turns.fail(error)

    def _make(self, unit: Unit) -> None:
        computed: dict[tuple[Computed, Region], Array] = {}  # every rank has the same tables
        for piece in unit.pieces:
            extent = tuple(stop - start for start, stop in piece.region)
            place = self._assembly.place(piece.job, piece.offset, piece.nbytes)
            data = np.empty(piece.nbytes, np.uint8) if place is None else place
            out = data.view(CODES[ITEMSIZE[piece.recipe.dtype]]).reshape(extent)
            if isinstance(piece.recipe, Computed):
                table = computed.get((piece.recipe, piece.region))
                if table is None:
                    table = evaluate(piece.recipe, self._sources, piece.region).view(out.dtype)
                    computed[piece.recipe, piece.region] = table
                out[...] = table
            elif unit.tall:
                _pour_in_boxes(piece, out, self._unshared, unit.tall)
            else:
                pour(piece.recipe, piece.region, out, self._sources)
            if place is None:
                chunks = self._assembly.copy(piece.job, piece.offset, data)
            else:
                chunks = self._assembly.filled(piece.job, piece.offset, piece.nbytes)
            if self._turns.error is not None:
                return
            self._commits.write(piece.job, chunks, self._assembly)


def _pour_in_boxes(piece: Piece, out: Array, reader: TensorReader, wants: int) -> None:
    """A piece that ``wants`` more bytes of the checkpoint than memory should hold: column by column, as of transposed
    tensors a column is some rows of what is stored."""
    columns = out.shape[-1]
    step = max(1, columns * _BOX // wants)
    begin = piece.region[-1][0]
    for first in range(0, columns, step):
        last = min(first + step, columns)
        box = (*piece.region[:-1], (begin + first, begin + last))
        pour(piece.recipe, box, out[..., first:last], reader)
