"""A step of one shape, bound once and run many times: every value of every rank has its address."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mm2c_runtime.executors.collectives import (
    all_gather,
    all_reduce,
    gathered_shape,
    reduce_scatter,
    scattered_shape,
)
from mm2c_runtime.executors.program import LoadedProgram, step_symbols
from mm2c_runtime.executors.values import Arena, Array
from mm2c_runtime.manifest import Collective

Ends = dict[int, list[tuple[Arena, Any]]]  # what each segment is the last to need, and whose it is


class Cache(Protocol):
    """A rank's KV cache, as a plan sees it."""

    @property
    def context(self) -> int: ...

    def slices(self, first: int, count: int) -> Mapping[str, Any]:
        """By name, rows ``first`` … ``first + count - 1`` of each of its blocks."""


@dataclass(slots=True)
class StepInputs:
    """What the ranks of an attention group read: ``ids`` i64[batch, width], ``past`` and ``new`` i32[batch], of the
    cache rows from ``first`` on."""

    first: int
    ids: NDArray[np.int64]
    past: NDArray[np.int32]
    new: NDArray[np.int32]

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.ids.size


@dataclass(slots=True)
class BoundSegment:
    given: StepInputs
    session: ort.InferenceSession
    binding: ort.IOBinding
    # Where the program cannot write its cache in place: what it wrote, and the rows for the new positions.
    written: list[tuple[Any, Any]] = field(default_factory=list)

    def read(self, name: str, array: Any) -> None:
        """Bind an input."""
        _bind(self.binding.bind_input, name, array)

    def write(self, name: str, array: Any) -> None:
        """Bind an output."""
        _bind(self.binding.bind_output, name, array)

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)
        if not self.written:
            return
        stops = self.given.past + self.given.new
        for written, rows in self.written:
            for row, start in enumerate(self.given.past):
                rows[row, :, start : stops[row]] = written[row, :, start : stops[row]]


@dataclass(slots=True)
class Plan:
    """A step on certain rows of every attention group.

    ``given`` is filled in before ``run``; ``logits`` (of each group's first rank) are valid until the next step
    runs. ``segments[i][rank]`` runs before ``collectives[i]``; the ranks one after another, or as ``each``
    runs one thing for every rank. ``values`` keeps alive what the bindings know by address only."""

    given: list[StepInputs]
    each: Callable[[Sequence[Callable[[], None]]], object] | None = None
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    segments: list[list[BoundSegment]] = field(default_factory=list)
    collectives: list[list[Callable[[], None]]] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Run all ranks in lockstep, segment by segment."""
        for index, ranks in enumerate(self.segments):
            if self.each is None:
                for bound in ranks:
                    bound.run()
            else:
                self.each([bound.run for bound in ranks])
            if index < len(self.collectives):
                for collective in self.collectives[index]:
                    collective()


class Planner:
    """Makes plans over the ranks' programs and caches. Plans share memory: one runs at a time.

    ``tp``: ranks of an attention group.
    """

    def __init__(
        self,
        programs: Sequence[LoadedProgram],
        collectives: Sequence[Collective],
        caches: Sequence[Cache],
        *,
        tp: int,
        in_place: bool,
    ) -> None:
        self._programs, self._caches, self._tp, self._in_place = programs, caches, tp, in_place
        self._collectives = collectives
        self._arena = Arena()

    def close(self) -> None:
        """Let go of sessions, caches and memory."""
        self._programs, self._caches, self._arena = (), (), Arena()

    def first_run(self, given: list[StepInputs]) -> Plan:
        """Run a step, one of ``given`` for each attention group, binding each segment on the way; the plan repeats it.

        The caller has checked the sizes.
        """
        plan = Plan(given, self._together)
        tokens = max(inputs.tokens for inputs in given)
        symbols = []
        for rank, (program, cache) in enumerate(zip(self._programs, self._caches, strict=True)):
            inputs = given[rank // self._tp]
            batch, width = inputs.ids.shape
            values: dict[str, Any] = {
                "input_ids": inputs.ids,
                "past_len": inputs.past,
                "new_len": inputs.new,
                "step_tokens": np.array([tokens], np.int64),
            }
            for name, rows in cache.slices(inputs.first, batch).items():
                side, layer = name.split(".")
                values[name] = values[f"{side}_out.{layer}"] = rows
            plan.values.append(values)
            symbols.append(step_symbols(program, batch, width, cache.context, tokens))
        self._begin()
        ends: Ends = {}
        for index in range(len(self._programs[0].segments)):
            calls = [
                partial(self._bind_and_run, index, program, symbols[rank], plan, rank, ends)
                for rank, program in enumerate(self._programs)
            ]
            together = self._together
            plan.segments.append([call() for call in calls] if together is None else together(calls))
            if index < len(self._collectives):
                plan.collectives.append(self._join(index, plan.values, ends))
                for collective in plan.collectives[index]:
                    collective()
            for arena, array in ends.pop(index, []):
                arena.give(array)
        plan.logits = [values["logits"] for values in plan.values[:: self._tp]]
        return plan

    def _begin(self) -> None:
        """Every step has all memory."""
        self._arena.begin()

    @property
    def _together(self) -> Callable[[Sequence[Callable[[], Any]]], list[Any]] | None:
        """Runs one thing for every rank; None where they take turns."""
        return None

    def _bound(self, rank: int, given: StepInputs, session: ort.InferenceSession) -> BoundSegment:
        return BoundSegment(given, session, session.io_binding())

    def _memory(self, rank: int, index: int, name: str) -> Arena:
        """For what segment ``index`` of ``rank`` writes as ``name``."""
        return self._arena

    def _host(self, rank: int) -> Arena:
        """For what only a run tells the size of."""
        return self._arena

    def _scratch(self, rank: int) -> Arena:
        """For caches that are written as a whole, until their new positions are taken over."""
        return self._arena

    def _bind_and_run(
        self,
        index: int,
        program: LoadedProgram,
        symbols: dict[str, int],
        plan: Plan,
        rank: int,
        ends: Ends,
    ) -> BoundSegment:
        segment, values = program.segments[index], plan.values[rank]
        bound = self._bound(rank, plan.given[rank // self._tp], segment.session)
        scratch = self._scratch(rank)
        for name in segment.inputs:
            bound.read(name, values[name])
        unknown = []
        for place, (name, kind) in enumerate(segment.outputs.items()):
            if name in values:  # a cache output: its rows are its memory
                array = values[name]
                if not self._in_place:
                    array = scratch.take(array.shape, array.dtype)
                    bound.written.append((array, values[name]))
            elif (shape := kind.sizes(symbols)) is not None:
                arena, end = self._memory(rank, index, name), program.end(name, index)
                array = values[name] = _take(arena, shape, kind.dtype, end, ends)
            else:
                unknown.append((place, name))
                bound.binding.bind_output(name)
                continue
            bound.write(name, array)
        bound.run()
        if unknown:
            outputs = bound.binding.get_outputs()
            for place, name in unknown:
                found = outputs[place].numpy()
                arena, end = self._host(rank), program.end(name, index)
                array = values[name] = _take(arena, found.shape, found.dtype, end, ends)
                np.copyto(array, found)
                bound.write(name, array)
        for array, _ in bound.written:
            scratch.give(array)
        return bound

    def _join(self, index: int, values: list[dict[str, Any]], ends: Ends) -> list[Callable[[], None]]:
        """The collective of every rank group, whose ranks read one and the same result but for a reduce_scatter's."""
        collective = self._collectives[index]
        calls: list[Callable[[], None]] = []
        for group in collective.groups:
            parts = [values[rank][collective.input] for rank in group]
            shape = parts[0].shape
            if collective.kind == "reduce_scatter":
                calls.append(self._scatter(index, group, values, ends))
                continue
            if collective.kind == "all_gather":
                shape = gathered_shape(shape, collective.axis, len(group))
            end = max(self._programs[rank].end(collective.output, index) for rank in group)
            out = _take(self._arena, shape, parts[0].dtype, end, ends)
            for rank in group:
                values[rank][collective.output] = out
            if collective.kind == "all_gather":
                calls.append(partial(all_gather, parts, collective.axis, out))
            else:
                calls.append(partial(all_reduce, parts, out))
        return calls

    def _scatter(
        self, index: int, group: list[int], values: list[dict[str, Any]], ends: Ends
    ) -> Callable[[], None]:
        collective = self._collectives[index]
        parts = [values[rank][collective.input] for rank in group]
        shape = scattered_shape(parts[0].shape, collective.axis, len(group))
        outs = []
        for rank in group:
            end = self._programs[rank].end(collective.output, index)
            outs.append(_take(self._arena, shape, parts[0].dtype, end, ends))
            values[rank][collective.output] = outs[-1]
        return partial(reduce_scatter, parts, collective.axis, outs)


def _take(arena: Arena, shape: tuple[int, ...], dtype: np.dtype[np.generic], end: int, ends: Ends) -> Any:
    array = arena.take(shape, dtype)
    ends.setdefault(end, []).append((arena, array))
    return array


def _bind(bind: Callable[..., None], name: str, array: Array) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
