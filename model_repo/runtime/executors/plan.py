"""A step of one shape, bound once and run many times: every value of every rank has its address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mm2c_runtime.executors.cache import LinearCache
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
    written: list[tuple[Array, Array]] = field(default_factory=list)

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
    runs. ``segments[i][rank]`` runs before ``collectives[i]``. ``values`` keeps alive what the bindings know by
    address only."""

    given: list[StepInputs]
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    segments: list[list[BoundSegment]] = field(default_factory=list)
    collectives: list[list[Callable[[], None]]] = field(default_factory=list)
    values: list[dict[str, Array]] = field(default_factory=list)

    def run(self) -> None:
        """Run all ranks in lockstep, segment by segment."""
        for index, ranks in enumerate(self.segments):
            for bound in ranks:
                bound.run()
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
        caches: Sequence[LinearCache],
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
        plan = Plan(given)
        tokens = max(inputs.tokens for inputs in given)
        symbols = []
        for rank, (program, cache) in enumerate(zip(self._programs, self._caches, strict=True)):
            inputs = given[rank // self._tp]
            batch, width = inputs.ids.shape
            values: dict[str, Array] = {
                "input_ids": inputs.ids,
                "past_len": inputs.past,
                "new_len": inputs.new,
                "step_tokens": np.array([tokens], np.int64),
            }
            for name, block in cache.blocks.items():
                side, layer = name.split(".")
                values[name] = values[f"{side}_out.{layer}"] = block[inputs.first : inputs.first + batch]
            plan.values.append(values)
            symbols.append(step_symbols(program, batch, width, cache.context, tokens))
        self._arena.begin()
        ends: dict[int, list[Array]] = {}  # what each segment is the last to need
        for index in range(len(self._programs[0].segments)):
            plan.segments.append(
                [
                    self._bind_and_run(index, program, symbols[rank], plan, rank, ends)
                    for rank, program in enumerate(self._programs)
                ]
            )
            if index < len(self._collectives):
                plan.collectives.append(self._join(index, plan.values, ends))
                for collective in plan.collectives[index]:
                    collective()
            for array in ends.pop(index, []):
                self._arena.give(array)
        plan.logits = [values["logits"] for values in plan.values[:: self._tp]]  # type: ignore[misc]
        return plan

    def _bind_and_run(
        self,
        index: int,
        program: LoadedProgram,
        symbols: dict[str, int],
        plan: Plan,
        rank: int,
        ends: dict[int, list[Array]],
    ) -> BoundSegment:
        segment, values = program.segments[index], plan.values[rank]
        bound = BoundSegment(plan.given[rank // self._tp], segment.session, segment.session.io_binding())
        for name in segment.inputs:
            _bind(bound.binding.bind_input, name, values[name])
        unknown = []
        for place, (name, kind) in enumerate(segment.outputs.items()):
            if name in values:  # a cache output: its rows are its memory
                array = values[name]
                if not self._in_place:
                    array = self._arena.take(array.shape, array.dtype)
                    bound.written.append((array, values[name]))
            elif (shape := kind.sizes(symbols)) is not None:
                array = values[name] = self._take(shape, kind.dtype, program.end(name, index), ends)
            else:
                unknown.append((place, name))
                bound.binding.bind_output(name)
                continue
            _bind(bound.binding.bind_output, name, array)
        bound.run()
        if unknown:
            outputs = bound.binding.get_outputs()
            for place, name in unknown:
                found = outputs[place].numpy()
                array = values[name] = self._take(found.shape, found.dtype, program.end(name, index), ends)
                np.copyto(array, found)
                _bind(bound.binding.bind_output, name, array)
        for array, _ in bound.written:
            self._arena.give(array)
        return bound

    def _join(
        self, index: int, values: list[dict[str, Array]], ends: dict[int, list[Array]]
    ) -> list[Callable[[], None]]:
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
            out = self._take(shape, parts[0].dtype, end, ends)
            for rank in group:
                values[rank][collective.output] = out
            if collective.kind == "all_gather":
                calls.append(partial(all_gather, parts, collective.axis, out))
            else:
                calls.append(partial(all_reduce, parts, out))
        return calls

    def _scatter(
        self, index: int, group: list[int], values: list[dict[str, Array]], ends: dict[int, list[Array]]
    ) -> Callable[[], None]:
        collective = self._collectives[index]
        parts = [values[rank][collective.input] for rank in group]
        shape = scattered_shape(parts[0].shape, collective.axis, len(group))
        outs = []
        for rank in group:
            end = self._programs[rank].end(collective.output, index)
            outs.append(self._take(shape, parts[0].dtype, end, ends))
            values[rank][collective.output] = outs[-1]
        return partial(reduce_scatter, parts, collective.axis, outs)

    def _take(
        self, shape: tuple[int, ...], dtype: np.dtype[np.generic], end: int, ends: dict[int, list[Array]]
    ) -> Array:
        array = self._arena.take(shape, dtype)
        ends.setdefault(end, []).append(array)
        return array


def _bind(bind: Callable[..., None], name: str, array: Array) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
