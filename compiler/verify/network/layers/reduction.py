"""REDUCE and TOPK."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import FLOATS, INTEGERS, Precision, torch_dtype, widened
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.given import axis_of, numbers, tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView

_NUMBERS = FLOATS | INTEGERS
_REDUCTIONS: dict[str, tuple[frozenset[str], Callable[[Tensor, list[int], bool], Tensor]]] = {
    "SUM": (_NUMBERS, lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype)),
    "MAX": (_NUMBERS, lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "MIN": (_NUMBERS, lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "AVG": (FLOATS, lambda x, axes, keep: x.mean(axes, keepdim=keep)),
}


@evaluates("REDUCE", "IReduceLayer", "axes", "keep_dims", "op")
def reduce(view: LayerView) -> Evaluate:
    """Narrow floats are summed in f32."""
    view.only(0)
    types, compute = _REDUCTIONS[view.one_of("operation", view.layer.op, *_REDUCTIONS)]
    facts, keep = view.input(0), bool(view.layer.keep_dims)
    axes = axis_of(int(view.layer.axes), len(facts.shape))
    if facts.dtype not in types or not axes:
        view.refuse(f"{view.layer.op.name} of {facts.dtype} over axes {axes}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        x = tensor(given, 0)
        return (compute(widened(x), axes, keep).to(x.dtype),)

    return evaluate


@evaluates("TOPK", "ITopKLayer", "axes", "indices_type", "k", "op")
def topk(view: LayerView) -> Evaluate:
    """Best first. TensorRT leaves open which of equal values comes first; here the lower index does, as in ONNX."""
    view.only(0, 1)
    best = view.one_of("operation", view.layer.op, "MAX", "MIN") == "MAX"
    axes = axis_of(int(view.layer.axes), len(view.input(0).shape))
    if len(axes) != 1 or view.input(0).dtype not in _NUMBERS:
        view.refuse(f"axes {axes} of {view.input(0).dtype}")
    (axis,) = axes
    fixed = None if view.given(1) else int(view.layer.k)
    index_type = view.outputs[1].dtype

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        x = tensor(given, 0)
        k = numbers(tensor(given, 1))[0] if fixed is None else fixed
        if not 0 <= k <= x.shape[axis]:
            raise ReplayError(f"layer {view.name}: the best {k} of {x.shape[axis]}")
        values, places = torch.sort(x, dim=axis, descending=best, stable=True)
        places = places.narrow(axis, 0, k).to(torch_dtype(index_type, precision))
        return values.narrow(axis, 0, k), places

    return evaluate
