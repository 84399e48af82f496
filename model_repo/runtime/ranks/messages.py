"""What the engine process and its rank processes say to each other, pickled over a socket pair.

The pair is inherited, so only a process that this one started can be at its other end.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import Code, RequestError
from mm2c_runtime.executors.base import KvFacts
from mm2c_runtime.executors.batch import Together
from mm2c_runtime.manifest import Limits
from mm2c_runtime.step import StepBatch, StepResult

_MASKED = np.empty(0, np.int32)  # in place of a mask


@dataclass(frozen=True, slots=True)
class Ready:
    """A rank has loaded. ``kv``: its own cache, of ``tokens`` tokens."""

    limits: Limits
    kv: KvFacts
    tokens: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A rank cannot load: the parts of its BundleError."""

    what: str
    where: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Step:
    """``batch``: of the rank's attention group, None where it has nothing to do. ``late``: places in ``batch.rows``
    whose grammar mask follows as a ``Mask``, in this order; to the rank that ``answers`` for its group only.
    ``logits``: the whole logits are asked for instead of samples. ``agreed``: of a joint step of several groups,
    which is called ``number`` (``batch.step_id`` is one group's)."""

    batch: StepBatch | None
    late: tuple[int, ...] = ()
    logits: bool = False
    answers: bool = True
    agreed: Together | None = None
    number: int = 0

    @property
    def id(self) -> int:
        return self.number if self.agreed is not None or self.batch is None else self.batch.step_id


@dataclass(frozen=True, slots=True)
class Mask:
    """The promised mask of a row, or why there is none."""

    place: int
    bits: NDArray[np.int32] | None
    code: Code = "INTERNAL"
    error: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """A rank has carried out step ``step_id``. The first of a group gives its result, the others None."""

    step_id: int
    result: StepResult | NDArray[np.float32] | None
    seconds: float  # that the model ran


@dataclass(frozen=True, slots=True)
class Failed:
    """A step failed on a rank. ``lost``: the rank cannot go on (its device is gone)."""

    step_id: int
    kind: Literal["request", "value", "other"]
    code: Code
    message: str
    lost: bool = False


class LateMask(Future["NDArray[np.int32]"]):
    """A mask that is read from the connection when it is asked for. Masks come in the order of ``Step.late``;
    ``receive`` gives the next message."""

    def __init__(self, place: int, receive: Callable[[], Mask]) -> None:
        super().__init__()
        self._place, self._receive = place, receive

    def result(self, timeout: float | None = None) -> NDArray[np.int32]:
        if not self.done():
            mask = self._receive()
            if mask.place != self._place:
                raise ConnectionError(f"the mask of row {mask.place} came where row {self._place}'s was due")
            if mask.bits is None:
                self.set_exception(RequestError(mask.code, mask.error))
            else:
                self.set_result(mask.bits)
        return super().result(timeout)


def encode(message: object) -> bytes:
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def receive(connection: Connection) -> object:
    """The next message; EOFError or OSError where the other end is gone."""
    return pickle.loads(connection.recv_bytes())


def without_masks(batch: StepBatch) -> tuple[StepBatch, dict[int, Future[NDArray[np.int32]]]]:
    """The batch as it can be pickled, and the promised masks by their row's place."""
    promised = {place: row.bitmask for place, row in enumerate(batch.rows) if isinstance(row.bitmask, Future)}
    if not promised:
        return batch, {}
    rows = [replace(row, bitmask=None) if place in promised else row for place, row in enumerate(batch.rows)]
    return replace(batch, rows=rows), promised


def for_others(batch: StepBatch) -> StepBatch:
    """What ranks that do not sample need of it: no histories, and of masks only that there is one."""
    rows = [
        replace(row, bitmask=None if row.bitmask is None else _MASKED, history=[], generated=[])
        for row in batch.rows
    ]
    return replace(batch, rows=rows)
