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

    def run(self, plan: Plan) -> None:
        self.session.run_with_iobinding(self.binding)
        if not self.written:
            return
        spans = [(row, past, past + new) for row, (past, new) in enumerate(zip(plan.past, plan.new, strict=True))]
        for written, rows in self.written:
            for row, start, stop in spans:
                rows[row, :, start:stop] = written[row, :, start:stop]


@dataclass(slots=True)
class Plan:
    """A step on certain rows with ``ids`` i64[batch, width].

    ``ids``, ``past`` and ``new`` i32[batch] are filled in before ``run``; ``logits`` (rank 0's) is valid until the
    next step runs. ``segments[i][rank]`` runs before ``collectives[i]``.
    """

    ids: NDArray[np.int64]
    past: NDArray[np.int32]
    new: NDArray[np.int32]
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    segments: list[list[BoundSegment]] = field(default_factory=list)
    collectives: list[list[Callable[[], None]]] = field(default_factory=list)

    def run(self) -> None:
        """Run all ranks in lockstep, segment by segment."""
        for index, ranks in enumerate(self.segments):
            for bound in ranks:
                bound.run(self)
            if index < len(self.collectives):
                for collective in self.collectives[index]:
                    collective()


class Planner:
    """Makes plans over the ranks' programs, caches and shared buffers. Plans share their values' memory."""

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

    def close(self) -> None:
        """Let go of sessions, caches and buffers."""
        self.programs, self.caches, self._buffers = (), (), Buffers()

    def first_run(
        self, first: int, ids: NDArray[np.int64], past: NDArray[np.int32], new: NDArray[np.int32]
    ) -> Plan:
        """Run a step on the rows from ``first`` on, binding each segment on the way; the plan repeats it.

        The caller has checked the sizes.
        """
        batch, width = ids.shape
        step = {"input_ids": self._copy("input_ids", ids), "past_len": self._copy("past_len", past)}
        step["new_len"] = self._copy("new_len", new)
        values: list[dict[str, Array]] = []
        for cache in self.caches:
            rank_values = dict(step)
            for name, block in cache.blocks.items():
                side, layer = name.split(".")
                rank_values[name] = rank_values[f"{side}_out.{layer}"] = block[first : first + batch]
            values.append(rank_values)
        symbols = [step_symbols(program, batch, width, self.caches[0].context) for program in self.programs]
        plan = Plan(step["input_ids"], step["past_len"], step["new_len"])  # type: ignore[arg-type]
        for index in range(len(self.programs[0].segments)):
            ranks = [
                self._bind_and_run(rank, program.segments[index], values[rank], symbols[rank], plan)
                for rank, program in enumerate(self.programs)
            ]
            plan.segments.append(ranks)
            if index < len(self._collectives):
                plan.collectives.append(self._join(index, self._collectives[index], values))
                for collective in plan.collectives[index]:
                    collective()
        plan.logits = values[0]["logits"]  # type: ignore[assignment]
        return plan

    def _bind_and_run(
        self, rank: int, segment: LoadedSegment, values: dict[str, Array], symbols: dict[str, int], plan: Plan
    ) -> BoundSegment:
        bound = BoundSegment(segment.session, segment.session.io_binding())
        for name in segment.inputs:
            _bind(bound.binding.bind_input, name, values[name])
        unknown = []
        for index, (name, kind) in enumerate(segment.outputs.items()):
            if name in values:  # a cache output: its rows are its memory
                array = values[name]
                if not self.in_place:
                    array = self._buffers.view(("written", len(bound.written)), array.shape, array.dtype)
                    bound.written.append((array, values[name]))  # type: ignore[arg-type]
            elif (shape := kind.sizes(symbols)) is not None:
                array = values[name] = self._buffers.view((rank, name), shape, kind.dtype)
            else:
                unknown.append((index, name))
                bound.binding.bind_output(name)
                continue
            _bind(bound.binding.bind_output, name, array)
        bound.run(plan)
        if unknown:
            outputs = bound.binding.get_outputs()
            for index, name in unknown:
                values[name] = self._copy((rank, name), outputs[index].numpy())
                _bind(bound.binding.bind_output, name, values[name])
        return bound

    def _join(self, index: int, collective: Collective, values: list[dict[str, Array]]) -> list[Callable[[], None]]:
        """The collective of every rank group; the ranks of a group read one and the same result."""
        calls: list[Callable[[], None]] = []
        for number, group in enumerate(collective.groups):
            parts = [values[rank][collective.input] for rank in group]
            shape = parts[0].shape
            if collective.kind == "all_gather":
                shape = gathered_shape(shape, collective.axis, len(group))
            out = parts[0] if len(group) == 1 else self._buffers.view(("joined", index, number), shape, parts[0].dtype)
            for rank in group:
                values[rank][collective.output] = out
            if len(group) == 1:
                continue
            if collective.kind == "all_gather":
                calls.append(partial(all_gather, parts, collective.axis, out))
            else:
                calls.append(partial(all_reduce, parts, out))
        return calls

    def _copy(self, key: object, source: Array) -> Array:
        """``source`` in memory that stays."""
        array = self._buffers.view(key, source.shape, source.dtype)
        np.copyto(array, source)
        return array


def _bind(bind: Callable[..., None], name: str, array: Array) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
