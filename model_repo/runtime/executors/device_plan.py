"""Steps of ranks that have a device each: their caches and what travels between segments stay on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnxruntime as ort

from mm2c_runtime.executors.device import Device, DeviceArray, DeviceCache, DeviceMemory, copy_positions
from mm2c_runtime.executors.plan import BoundSegment, Planner, StepInputs
from mm2c_runtime.executors.program import LoadedProgram
from mm2c_runtime.executors.rank_threads import RankThreads
from mm2c_runtime.executors.values import Arena
from mm2c_runtime.manifest import Collective


@dataclass(slots=True)
class DeviceSegment(BoundSegment):
    """``written`` are DeviceArrays. Inputs are bound anew for every run: ONNX Runtime copies one that lies elsewhere
    than its first reader wants it when it is bound, and never again."""

    reads: list[tuple[str, Any]] = field(default_factory=list)

    def read(self, name: str, array: Any) -> None:
        self.reads.append((name, array))

    def write(self, name: str, array: Any) -> None:
        if isinstance(array, DeviceArray):
            _bind(self.binding.bind_output, name, array)
        else:
            BoundSegment.write(self, name, array)

    def run(self) -> None:
        for name, array in self.reads:
            if isinstance(array, DeviceArray):
                _bind(self.binding.bind_input, name, array)
            else:
                BoundSegment.read(self, name, array)
        self.binding.synchronize_inputs()
        self.session.run_with_iobinding(self.binding)
        if not self.written:
            return
        stops = self.given.past + self.given.new
        for written, rows in self.written:
            for row, start in enumerate(self.given.past):
                copy_positions(rows, written, row, int(start), int(stops[row]))
        self.written[0][0].device.synchronize()


class DevicePlanner(Planner):
    """A Planner whose ranks' values are on ``devices``. What a collective joins, and the logits, pass through host
    memory: ONNX Runtime carries them there and back with the segments' runs, and the sums are those of the CPU."""

    def __init__(
        self,
        programs: Sequence[LoadedProgram],
        collectives: Sequence[Collective],
        caches: Sequence[DeviceCache],
        *,
        tp: int,
        in_place: bool,
        devices: Sequence[Device],
        threads: RankThreads,
        rows: int,
    ) -> None:
        """``rows``: the most that a step has."""
        super().__init__(programs, collectives, caches, tp=tp, in_place=in_place)
        self._threads = threads
        self._hosts = [Arena() for _ in devices]
        self._devices = [Arena(DeviceMemory(device)) for device in devices]
        self._scratches = [Arena(DeviceMemory(device)) for device in devices]
        if not in_place:
            for program, cache, scratch in zip(programs, caches, self._scratches, strict=True):
                _reserve(scratch, program, cache, rows)

    def close(self) -> None:
        super().close()
        self._hosts, self._devices, self._scratches = [], [], []

    def _begin(self) -> None:
        super()._begin()
        for arena in (*self._hosts, *self._devices, *self._scratches):
            arena.begin()

    @property
    def _together(self) -> Callable[[Sequence[Callable[[], Any]]], list[Any]]:
        return self._threads.each

    def _bound(self, rank: int, given: StepInputs, session: ort.InferenceSession) -> BoundSegment:
        return DeviceSegment(given, session, session.io_binding())

    def _memory(self, rank: int, index: int, name: str) -> Arena:
        joined = index < len(self._collectives) and self._collectives[index].input == name
        return self._hosts[rank] if joined or name == "logits" else self._devices[rank]

    def _host(self, rank: int) -> Arena:
        return self._hosts[rank]

    def _scratch(self, rank: int) -> Arena:
        return self._scratches[rank]


def _reserve(scratch: Arena, program: LoadedProgram, cache: DeviceCache, rows: int) -> None:
    """Make the blocks that serve every step at the start: where they do not fit, that is known then."""
    largest = max(sum("_cache_out." in name for name in segment.outputs) for segment in program.segments)
    for block in list(cache.slices(0, rows).values())[:largest]:
        scratch.take(block.shape, block.dtype)
    scratch.begin()


def _bind(bind: Callable[..., None], name: str, array: DeviceArray) -> None:
    bind(name, array.device.kind, array.device.number, array.dtype.type, array.shape, array.address)
