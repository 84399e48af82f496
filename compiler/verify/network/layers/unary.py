"""UNARY, ACTIVATION and SOFTMAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import FLOATS, INTEGERS, Precision, widened
from mm2c.verify.network.layers.given import axis_of, tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView

_BOOL = frozenset({"BOOL"})

_UNARY: dict[str, tuple[frozenset[str], Callable[[Tensor], Tensor]]] = {
    "EXP": (FLOATS, torch.exp),
    "LOG": (FLOATS, torch.log),
    "SQRT": (FLOATS, torch.sqrt),
    "RECIP": (FLOATS, torch.reciprocal),
    "ABS": (FLOATS | INTEGERS, torch.abs),
    "NEG": (FLOATS | INTEGERS, torch.neg),
    "SIN": (FLOATS, torch.sin),
    "COS": (FLOATS, torch.cos),
    "ERF": (FLOATS, torch.erf),
    "CEIL": (FLOATS, torch.ceil),
    "FLOOR": (FLOATS, torch.floor),
    "NOT": (_BOOL, torch.logical_not),
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "RELU": torch.relu,
    "SIGMOID": torch.sigmoid,
    "TANH": torch.tanh,
}


@evaluates("UNARY", "IUnaryLayer", "op")
def unary(view: LayerView) -> Evaluate:
    types, compute = _UNARY[view.one_of("operation", view.layer.op, *_UNARY)]
    return _pointwise(view, types, compute)


@evaluates("ACTIVATION", "IActivationLayer", "alpha", "beta")
def activation(view: LayerView) -> Evaluate:
    """Here ``type`` is the activation's, and hides the layer's own."""
    name = view.one_of("activation", view.layer.type, *_ACTIVATIONS)
    return _pointwise(view, FLOATS, _ACTIVATIONS[name])


@evaluates("SOFTMAX", "ISoftMaxLayer", "axes")
def softmax(view: LayerView) -> Evaluate:
    axes = axis_of(int(view.layer.axes), len(view.input(0).shape))
    if len(axes) != 1:
        view.refuse(f"axes {axes}")
    return _pointwise(view, FLOATS, lambda x: torch.softmax(x, axes[0]))


def _pointwise(view: LayerView, types: frozenset[str], compute: Callable[[Tensor], Tensor]) -> Evaluate:
    view.only(0)
    if view.input(0).dtype not in types:
        view.refuse(f"{view.input(0).dtype}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        x = tensor(given, 0)
        return (compute(widened(x)).to(x.dtype),)

    return evaluate
