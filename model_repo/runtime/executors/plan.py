"""A step of one shape, bound once and run many times: every value of every rank has its address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mm2c_runtime.executors.cache import LinearCache
from mm2c_runtime.executors.collectives import all_gather, all_reduce, gathered_shape
from mm2c_runtime.executors.program import LoadedProgram, LoadedSegment, step_symbols
from mm2c_runtime.executors.values import Array, Buffers
from mm2c_runtime.manifest import Collective


@dataclass(slots=True)
class BoundSegment:
    session: ort.InferenceSession
    binding: ort.IOBinding
    # Where the program cannot write its cache in place: what it wrote, and the rows that take the new positions.
    written: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=list)


@dataclass(slots=True)
class Plan:
    """Rows ``first`` .. ``first + batch - 1`` with ``width`` tokens each.

    ``ids`` i64[batch, width], ``past`` and ``new`` i32[batch] are filled in before ``run``; ``logits`` (rank 0's)
    is valid until the next plan runs. ``segments[i][r]`` runs before ``collectives[i]``.
    """

    ids: NDArray[np.int64]
    past: NDArray[np.int32]
    new: NDArray[np.int32]
    logits: NDArray[np.float32]
    segments: list[list[BoundSegment]]
    collectives: list[list[Callable[[], None]]]

    def run(self) -> None:
        """Run all ranks in lockstep, segment by segment."""
        for index, ranks in enumerate(self.segments):
            for bound in ranks:
                bound.session.run_with_iobinding(bound.binding)
                if bound.written:
                    self._write_back(bound)
            if index < len(self.collectives):
                for collective in self.collectives[index]:
                    collective()

    def _write_back(self, bound: BoundSegment) -> None:
        spans = [(row, int(past), int(past + new)) for row, (past, new) in enumerate(zip(self.past, self.new))]
        for written, rows in bound.written:
            for row, start, stop in spans:
                rows[row, :, start:stop] = written[row, :, start:stop]


class Planner:
    """Makes plans over the ranks' programs, caches and shared buffers."""

    def __init__(
        self,
        programs: Sequence[LoadedProgram],
        collectives: Sequence[Collective],
        caches: Sequence[LinearCache],
        *,
        in_place: bool,
    ) -> None:
        self.programs, self.caches, self.in_place = programs, caches, in_place
        self._collectives = collectives
        self._buffers = Buffers()

    @property
    def generation(self) -> int:
        """Changes when plans made so far must not be run again."""
        return self._buffers.grown

    def plan(self, first: int, batch: int, width: int) -> Plan:
        """Bind everything for the rows from ``first`` on. The caller has checked the sizes."""
        context = self.caches[0].context
        i64, i32 = np.dtype(np.int64), np.dtype(np.int32)
        ids = self._zeros("input_ids", (batch, width), i64)
        past = self._zeros("past_len", (batch,), i32)
        new = self._zeros("new_len", (batch,), i32)
        new[:] = width  # so that a trial run for a shape sees a legal step
        values: list[dict[str, Array]] = []
        for cache in self.caches:
            rank_values: dict[str, Array] = {"input_ids": ids, "past_len": past, "new_len": new}
            for name, block in cache.blocks.items():
                side, layer = name.split(".")
                rank_values[name] = rank_values[f"{side}_out.{layer}"] = block[first : first + batch]
            values.append(rank_values)
        symbols = [step_symbols(program, batch, width, context) for program in self.programs]
        segments: list[list[BoundSegment]] = []
        reductions: list[list[Callable[[], None]]] = []
        for index in range(len(self.programs[0].segments)):
            segments.append(
                [
                    self._bind(rank, program.segments[index], values[rank], symbols[rank])
                    for rank, program in enumerate(self.programs)
                ]
            )
            if index < len(self._collectives):
                reductions.append(self._join(index, self._collectives[index], values))
        logits = values[0]["logits"]
        return Plan(ids, past, new, logits, segments, reductions)  # type: ignore[arg-type]

    def _bind(
        self, rank: int, segment: LoadedSegment, values: dict[str, Array], symbols: dict[str, int]
    ) -> BoundSegment:
        binding = segment.session.io_binding()
        bound = BoundSegment(segment.session, binding)
        for name in segment.inputs:
            array = values[name]
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, kind in segment.outputs.items():
            if name in values:  # a cache output: its rows are its memory
                array = values[name]
                if not self.in_place:
                    rows = array
                    array = self._zeros(("written", len(bound.written)), rows.shape, rows.dtype)
                    bound.written.append((array, rows))  # type: ignore[arg-type]
            else:
                shape = kind.sizes(symbols) or self._trial_shape(segment, name, values)
                array = values[name] = self._zeros((rank, name), shape, kind.dtype)
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return bound

    def _join(self, index: int, collective: Collective, values: list[dict[str, Array]]) -> list[Callable[[], None]]:
        """The collective of every rank group; the ranks of a group read one and the same result."""
        calls: list[Callable[[], None]] = []
        for number, group in enumerate(collective.groups):
            parts = [values[rank][collective.input] for rank in group]
            shape = parts[0].shape
            if collective.kind == "all_gather":
                shape = gathered_shape(shape, collective.axis, len(group))
            out = parts[0] if len(group) == 1 else self._zeros(("joined", index, number), shape, parts[0].dtype)
            for rank in group:
                values[rank][collective.output] = out
            if len(group) == 1:
                continue
            if collective.kind == "all_gather":
                calls.append(partial(all_gather, parts, collective.axis, out))
            else:
                calls.append(partial(all_reduce, parts, out))
        return calls

    def _trial_shape(self, segment: LoadedSegment, name: str, values: dict[str, Array]) -> tuple[int, ...]:
        """The shape of an output that the program leaves open, by running it once on what the buffers hold.

        Shapes follow from the sizes of the step alone; the caches are read but not written.
        """
        feeds = {given: values[given] for given in segment.inputs}
        (array,) = segment.session.run([name], feeds)
        return tuple(int(size) for size in array.shape)

    def _zeros(self, key: object, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        array = self._buffers.view(key, shape, dtype)
        array[...] = 0
        return array
