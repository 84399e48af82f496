"""SHUFFLE, SQUEEZE, UNSQUEEZE and CONCATENATION: where values lie, not what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import Precision
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.given import numbers, tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView


@evaluates(
    "SHUFFLE", "IShuffleLayer", "first_transpose", "reshape_dims", "second_transpose", "zero_is_placeholder"
)
def shuffle(view: LayerView) -> Evaluate:
    """A transposition, a reshape to input 1 or the static sizes, another transposition."""
    view.only(0, 1)
    layer, rank, last_rank = view.layer, len(view.input(0).shape), len(view.outputs[0].shape)
    first = _permutation(view, layer.first_transpose, rank)
    second = _permutation(view, layer.second_transpose, last_rank)
    placeholder = bool(layer.zero_is_placeholder)
    fixed: list[int] | None = None
    if not view.given(1) and layer.reshape_dims is not None:
        fixed = [int(n) for n in layer.reshape_dims]
    reshapes = view.given(1) or fixed is not None
    if not reshapes and rank != last_rank:
        view.refuse(f"rank {rank} becomes {last_rank} without a reshape")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        x = tensor(given, 0).permute(first)
        if reshapes:
            x = x.reshape(
                _sizes(x, numbers(tensor(given, 1)) if fixed is None else fixed, placeholder, view.name)
            )
        return (x.permute(second),)

    return evaluate


def _permutation(view: LayerView, given: Iterable[int], rank: int) -> list[int]:
    order = [int(axis) for axis in given][:rank]
    if sorted(order) != list(range(rank)):
        view.refuse(f"transposition {order} of rank {rank}")
    return order


def _sizes(x: Tensor, wanted: list[int], placeholder: bool, name: str) -> list[int]:
    """``wanted`` with 0 as the size at its place where it is a placeholder, and one -1 as what is left."""
    sizes = list(wanted)
    for axis, size in enumerate(sizes):
        if size == 0 and placeholder:
            if axis >= x.dim():
                raise ReplayError(f"layer {name}: a reshape of {list(x.shape)} keeps axis {axis}")
            sizes[axis] = x.shape[axis]
    known = 1
    for size in sizes:
        known *= size if size != -1 else 1
    fits = x.numel() == known if -1 not in sizes else known > 0 and x.numel() % known == 0
    if sizes.count(-1) > 1 or any(size < -1 for size in sizes) or not fits:
        raise ReplayError(f"layer {name}: a reshape of {list(x.shape)} to {wanted}")
    return sizes


@evaluates("SQUEEZE", "ISqueezeLayer")
def squeeze(view: LayerView) -> Evaluate:
    """Without input 1, every axis that is known to have size 1."""
    view.only(0, 1)
    facts = view.input(0)
    units = [axis for axis, size in enumerate(facts.shape) if size == 1]
    if not view.given(1) and -1 in facts.shape:
        view.refuse("no axes, of a tensor whose sizes are not all known")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        x = tensor(given, 0)
        axes = numbers(tensor(given, 1)) if view.given(1) else units
        axes = sorted({axis % x.dim() for axis in axes})
        if any(x.shape[axis] != 1 for axis in axes):
            raise ReplayError(f"layer {view.name} squeezes axes {axes} of {list(x.shape)}")
        return (x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes]),)

    return evaluate


@evaluates("UNSQUEEZE", "IUnsqueezeLayer")
def unsqueeze(view: LayerView) -> Evaluate:
    """Input 1: the new axes, counted in the output."""
    view.only(0, 1)
    view.input(1)
    rank = len(view.outputs[0].shape)

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        x = tensor(given, 0)
        axes = {axis % rank for axis in numbers(tensor(given, 1))}
        if len(axes) != rank - x.dim():
            raise ReplayError(
                f"layer {view.name} puts axes {sorted(axes)} into {list(x.shape)} for rank {rank}"
            )
        sizes = iter(x.shape)
        return (x.reshape([1 if axis in axes else next(sizes) for axis in range(rank)]),)

    return evaluate


@evaluates("CONCATENATION", "IConcatenationLayer", "axis")
def concatenation(view: LayerView) -> Evaluate:
    facts = [view.input(index) for index in range(len(view.inputs))]
    if len({(f.dtype, len(f.shape)) for f in facts}) > 1:
        view.refuse("parts of unlike type or rank")
    axis = int(view.layer.axis)

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (torch.cat([tensor(given, index) for index in range(len(given))], axis),)

    return evaluate
