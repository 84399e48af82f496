"""GATHER and NON_ZERO."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import Precision, torch_dtype
from mm2c.verify.network.layers.given import tensor, within
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView


@evaluates("GATHER", "IGatherLayer", "axis", "mode", "num_elementwise_dims")
def gather(view: LayerView) -> Evaluate:
    """An index that does not exist is refused as it is met: TensorRT reads zero there, ONNX has no result. A negative
    one counts from the end where the size is known, and is undefined elsewhere."""
    view.only(0, 1)
    mode = view.one_of("mode", view.layer.mode, "DEFAULT", "ELEMENT", "ND")
    data, indices = view.input(0), view.input(1)
    if indices.dtype not in ("INT32", "INT64") or data.dtype == "FP8":
        view.refuse(f"{data.dtype} by {indices.dtype}")
    rank, batch = len(data.shape), int(view.layer.num_elementwise_dims)
    compute: Callable[[Tensor, Tensor], Tensor]
    if mode == "ND":
        compute = _by_tuples(view, batch)
    else:
        axis = int(view.layer.axis) % rank
        if batch:
            view.refuse(f"{batch} elementwise axes in mode {mode}")
        if mode == "ELEMENT" and len(indices.shape) != rank:
            view.refuse("indices of another rank")
        pick = _elements if mode == "ELEMENT" else _along
        known = data.shape[axis] != -1

        def compute(x: Tensor, at: Tensor) -> Tensor:
            return pick(x, _counted(at, x.shape[axis], known, view.name), axis)

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (compute(tensor(given, 0), tensor(given, 1).long()),)

    return evaluate


def _counted(at: Tensor, size: int, known: bool, name: str) -> Tensor:
    within(at, -size if known else 0, size, f"layer {name}")
    return torch.where(at < 0, at + size, at)


def _along(x: Tensor, at: Tensor, axis: int) -> Tensor:
    """The axis becomes the axes of ``at``."""
    picked = x.index_select(axis, at.reshape(-1))
    return picked.reshape([*x.shape[:axis], *at.shape, *x.shape[axis + 1 :]])


def _elements(x: Tensor, at: Tensor, axis: int) -> Tensor:
    return x.gather(axis, at)


def _by_tuples(view: LayerView, batch: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The last axis of the indices is a place in the axes behind the ``batch`` that both share."""
    depth = view.input(1).shape[-1]
    rank = len(view.input(0).shape)
    if depth < 1 or batch + depth > rank or batch >= len(view.input(1).shape):
        view.refuse(f"places of {depth} axes behind {batch} of {rank}")
    known = [size != -1 for size in view.input(0).shape]

    def compute(x: Tensor, at: Tensor) -> Tensor:
        places = [_counted(at[..., d], x.shape[batch + d], known[batch + d], view.name) for d in range(depth)]
        shared = [
            torch.arange(x.shape[axis]).reshape([-1 if d == axis else 1 for d in range(at.dim() - 1)])
            for axis in range(batch)
        ]
        return x[tuple(shared + places)]

    return compute


@evaluates("NON_ZERO", "INonZeroLayer", "indices_type")
def non_zero(view: LayerView) -> Evaluate:
    """[axes of the input, places found], in row-major order."""
    view.only(0)
    if not view.input(0).shape:
        view.refuse("of a scalar")
    index_type = view.outputs[0].dtype

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (torch.nonzero(tensor(given, 0)).t().to(torch_dtype(index_type, precision)),)

    return evaluate
