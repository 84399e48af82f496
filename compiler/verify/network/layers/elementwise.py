"""ELEMENTWISE and SELECT: axes of size 1 are repeated, ranks are equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import FLOATS, INTEGERS, Precision
from mm2c.verify.network.layers.given import tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView

_NUMBERS = FLOATS | INTEGERS
_BOOL = frozenset({"BOOL"})

# Each computes a narrow float in f32 and rounds once, which is what torch does for these.
_ON: dict[str, tuple[frozenset[str], Callable[[Tensor, Tensor], Tensor]]] = {
    "SUM": (_NUMBERS, torch.add),
    "PROD": (_NUMBERS, torch.mul),
    "SUB": (_NUMBERS, torch.sub),
    "MAX": (_NUMBERS, torch.maximum),
    "MIN": (_NUMBERS, torch.minimum),
    "POW": (FLOATS, torch.pow),
    "AND": (_BOOL, torch.logical_and),
    "OR": (_BOOL, torch.logical_or),
    "XOR": (_BOOL, torch.logical_xor),
    "EQUAL": (_NUMBERS | _BOOL, torch.eq),
    "GREATER": (_NUMBERS, torch.gt),
    "LESS": (_NUMBERS, torch.lt),
}


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """Of integers: towards zero."""
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _floor_divide(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


_ON["DIV"] = (_NUMBERS, _divide)
_ON["FLOOR_DIV"] = (INTEGERS, _floor_divide)


@evaluates("ELEMENTWISE", "IElementWiseLayer", "op")
def elementwise(view: LayerView) -> Evaluate:
    view.only(0, 1)
    types, compute = _ON[view.one_of("operation", view.layer.op, *_ON)]
    first, second = view.input(0), view.input(1)
    if first.dtype != second.dtype or first.dtype not in types:
        view.refuse(f"{view.layer.op.name} of {first.dtype} and {second.dtype}")
    if len(first.shape) != len(second.shape):
        view.refuse(f"operands of unequal rank, {list(first.shape)} and {list(second.shape)}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (compute(tensor(given, 0), tensor(given, 1)),)

    return evaluate


@evaluates("SELECT", "ISelectLayer")
def select(view: LayerView) -> Evaluate:
    view.only(0, 1, 2)
    facts = [view.input(index) for index in range(3)]
    if facts[0].dtype != "BOOL" or facts[1].dtype != facts[2].dtype:
        view.refuse(f"types {[f.dtype for f in facts]}")
    if len({len(f.shape) for f in facts}) > 1:
        view.refuse("operands of unequal rank")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (torch.where(tensor(given, 0), tensor(given, 1), tensor(given, 2)),)

    return evaluate
