"""NetworkReplay: a network's outputs, computed from its layers with torch on the CPU.

It computes exactly what the layers say, or refuses: every layer's kind, mode, attributes and inputs are looked at when
the replay is made. Matrix products and sums are made in f32. Where TensorRT leaves the order of sums open, so does a
comparison with this: results agree up to the rounding of f32 sums and, in declared precision, of every layer's output
to its own type.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mm2c.verify.network.calls import CollectiveCall, Collectives
from mm2c.verify.network.dtypes import NARROW_FLOATS, Precision, torch_dtype
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.collective import call_of
from mm2c.verify.network.read import Program, Step, read_program
from mm2c.verify.network.view import LayerView, TensorFacts

Steps: TypeAlias = Generator[CollectiveCall, Tensor, dict[str, Tensor]]
Observe: TypeAlias = Callable[[LayerView, tuple[Tensor, ...]], None]
_NONE: Collectives = {}


class NetworkReplay:
    """``trt``: the module that ``network`` is of, tensorrt_rtx or tensorrt. ``collectives``: what the network's
    collectives ask for (``collectives_of``), needed where it has any. Raises UnknownLayer. The network may be given up
    afterwards."""

    def __init__(self, trt: Any, network: Any, collectives: Collectives = _NONE) -> None:
        self._program: Program = read_program(trt, network, collectives)

    @property
    def inputs(self) -> list[str]:
        """Names in the network's order; ``run`` needs every one."""
        return list(self._program.inputs)

    @property
    def outputs(self) -> list[str]:
        return list(self._program.outputs)

    @property
    def unread(self) -> list[str]:
        """Inputs that no layer reads: where the graph reads one, the parser dropped it."""
        return [name for name, (number, _) in self._program.inputs.items() if number not in self._used]

    @property
    def layers(self) -> list[LayerView]:
        """Every layer in the order of evaluation."""
        return [step.view for step in self._program.steps]

    def run(
        self,
        feeds: Mapping[str, Tensor],
        precision: Precision = "declared",
        collectives: Callable[[CollectiveCall, Tensor], Tensor] | None = None,
        observe: Observe | None = None,
    ) -> dict[str, Tensor]:
        """The outputs by name. ``feeds``: every input in its declared type (narrow floats also in f32 where the
        precision is wide), left as they are, also caches that TensorRT would update in place. ``collectives``: what
        the other ranks make of a call and its tensor. ReplayError for a feed that is missing or of another type or
        shape, and for what has no defined result."""
        steps = self.steps(feeds, precision, observe)
        try:
            call = next(steps)
            while True:
                if collectives is None:
                    raise ReplayError(f"{call.name} exchanges with other ranks, and there are none")
                call = steps.send(collectives(call, call.tensor))
        except StopIteration as done:
            outputs: dict[str, Tensor] = done.value
            return outputs

    def steps(
        self, feeds: Mapping[str, Tensor], precision: Precision = "declared", observe: Observe | None = None
    ) -> Steps:
        """As ``run``, stopping at every collective: yields the call and is sent its result."""
        values = {n: _fed(feeds, facts, precision) for n, facts in self._program.inputs.values()}
        values = {n: x for n, x in values.items() if n in self._used}
        for step in self._program.steps:
            given = [None if n is None else _read(values, n, precision) for n in step.inputs]
            call = call_of(step.view, given)
            if call is None:
                with torch.no_grad():
                    made = step.evaluate(precision, given)
            else:
                made = ((yield call),)
            del given
            _check(step, made, precision)
            if observe is not None:
                observe(step.view, made)
            values.update(zip(step.outputs, made, strict=True))
            for number in step.last_uses:
                values.pop(number, None)
        return {name: _read(values, n, precision) for name, (n, _) in self._program.outputs.items()}

    @property
    def _used(self) -> set[int]:
        read = {n for step in self._program.steps for n in step.inputs if n is not None}
        return read | {n for n, _ in self._program.outputs.values()}


def _fed(feeds: Mapping[str, Tensor], facts: TensorFacts, precision: Precision) -> Tensor:
    if facts.name not in feeds:
        raise ReplayError(f"input {facts.name} is not fed")
    x = feeds[facts.name]
    allowed = {torch_dtype(facts.dtype, "declared"), torch_dtype(facts.dtype, precision)}
    if x.dtype not in allowed:
        raise ReplayError(f"input {facts.name} is {facts.dtype}, and {x.dtype} is fed")
    if not _fits(tuple(x.shape), facts.shape):
        raise ReplayError(f"input {facts.name} is {list(facts.shape)}, and {list(x.shape)} is fed")
    return x


def _read(values: dict[int, Tensor], number: int, precision: Precision) -> Tensor:
    """A value; what was fed in a narrow type becomes wide when it is first read, so that weights are not all held
    twice."""
    x = values[number]
    if precision == "wide" and x.dtype in NARROW_FLOATS:
        x = values[number] = x.float()
    return x


def _check(step: Step, made: tuple[Tensor, ...], precision: Precision) -> None:
    """What is computed agrees with what TensorRT's own inference says of the layer."""
    for x, facts in zip(made, step.view.outputs, strict=True):
        if x.dtype != torch_dtype(facts.dtype, precision) or not _fits(tuple(x.shape), facts.shape):
            raise ReplayError(
                f"layer {step.view.name} ({step.view.kind}) is declared as {facts.dtype} {list(facts.shape)} and is "
                f"evaluated to {x.dtype} {list(x.shape)}"
            )


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(d in (-1, n) for n, d in zip(shape, declared, strict=True))
