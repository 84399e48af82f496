"""SLICE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import Precision
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.given import numbers, tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView

_PLACES = {"start": 1, "shape": 2, "stride": 3, "axes": 5}
_FILL = 4  # the value that stands where there is no element, 0 without it


@evaluates("SLICE", "ISliceLayer", "axes", "mode", "shape", "start", "stride")
def slices(view: LayerView) -> Evaluate:
    """Start, size and stride of all axes, or of those that ``axes`` names; each an attribute or an input."""
    fills = view.one_of("mode", view.layer.mode, "STRICT_BOUNDS", "FILL") == "FILL"
    view.only(0, *_PLACES.values(), *([_FILL] if fills else []))
    # an attribute is read only where no input stands for it: TensorRT warns otherwise
    fixed = {what: None if view.given(at) else getattr(view.layer, what) for what, at in _PLACES.items()}

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        x = tensor(given, 0)

        def values(what: str) -> list[int] | None:
            at = _PLACES[what]
            if view.given(at):
                return numbers(tensor(given, at))
            known = fixed[what]
            return None if known is None else [int(n) for n in known]

        axes = values("axes")
        start, size, stride = (values(what) or [] for what in ("start", "shape", "stride"))
        named = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
        if not len(named) == len(set(named)) == len(start) == len(size) == len(stride):
            raise ReplayError(f"layer {view.name}: {len(start)} starts, {len(size)} sizes of axes {named}")
        fill = tensor(given, _FILL).reshape(()) if view.given(_FILL) else x.new_zeros(())
        for axis, first, count, step in zip(named, start, size, stride, strict=True):
            x = (
                _filled(x, axis, first, count, step, fill)
                if fills
                else _cut(x, axis, first, count, step, view.name)
            )
        return (x,)

    return evaluate


def _cut(x: Tensor, axis: int, first: int, count: int, step: int, name: str) -> Tensor:
    """``count`` elements from ``first`` on, ``step`` apart (0: one of them again and again, as the parser writes ONNX's
    Expand); every one must exist."""
    if count == 0:
        return x.narrow(axis, 0, 0)
    last = first + (count - 1) * step
    if count < 0 or not (0 <= first < x.shape[axis] and 0 <= last < x.shape[axis]):
        raise ReplayError(f"layer {name}: {count} from {first} by {step} of axis {axis} of {list(x.shape)}")
    if step == 0:
        sizes = [-1] * x.dim()
        sizes[axis] = count
        return x.narrow(axis, first, 1).expand(sizes)
    if step > 0:
        return x.narrow(axis, first, last - first + 1)[(slice(None),) * axis + (slice(None, None, step),)]
    return x.index_select(axis, torch.arange(first, last - 1, step))


def _filled(x: Tensor, axis: int, first: int, count: int, step: int, fill: Tensor) -> Tensor:
    """As ``_cut``, with ``fill`` for what lies outside."""
    at = first + step * torch.arange(count)
    inside = (at >= 0) & (at < x.shape[axis])
    if bool(inside.all()):
        return x.index_select(axis, at)
    if x.shape[axis] == 0:
        return fill.to(x.dtype).expand([count if n == axis else size for n, size in enumerate(x.shape)])
    taken = x.index_select(axis, at.clamp(0, x.shape[axis] - 1))
    places = inside.reshape([-1 if n == axis else 1 for n in range(x.dim())])
    return torch.where(places, taken, fill.to(x.dtype))
