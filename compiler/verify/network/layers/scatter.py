"""SCATTER."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import Precision
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.given import tensor, within
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView


@evaluates("SCATTER", "IScatterLayer", "axis", "mode")
def scatter(view: LayerView) -> Evaluate:
    """A place that does not exist is an error. One that is written twice holds what nobody can say: NaN here, which
    harms nothing where it is cut off again, and an error among integers."""
    view.only(0, 1, 2)
    mode = view.one_of("mode", view.layer.mode, "ELEMENT", "ND")
    data, indices, updates = (view.input(index) for index in range(3))
    if indices.dtype not in ("INT32", "INT64") or data.dtype == "FP8" or updates.dtype != data.dtype:
        view.refuse(f"{updates.dtype} into {data.dtype} by {indices.dtype}")
    compute: Callable[[Tensor, Tensor, Tensor], Tensor]
    if mode == "ND":
        depth = indices.shape[-1]
        if not 1 <= depth <= len(data.shape):
            view.refuse(f"places of {depth} axes of {len(data.shape)}")

        def compute(x: Tensor, at: Tensor, rows: Tensor) -> Tensor:
            return _by_tuples(x, at, rows, view.name)

    else:
        axis = int(view.layer.axis) % len(data.shape)

        def compute(x: Tensor, at: Tensor, rows: Tensor) -> Tensor:
            return _elements(x, at, rows, axis, view.name)

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (compute(tensor(given, 0), tensor(given, 1).long(), tensor(given, 2)),)

    return evaluate


def _by_tuples(x: Tensor, at: Tensor, rows: Tensor, name: str) -> Tensor:
    places = at.reshape(-1, at.shape[-1])
    for d in range(at.shape[-1]):
        within(places[:, d], 0, x.shape[d], f"layer {name}")
    made = x.clone()
    made[tuple(places.unbind(1))] = rows.reshape([len(places), *x.shape[at.shape[-1] :]])
    distinct, count = torch.unique(places, dim=0, return_counts=True)
    if len(distinct) < len(places):
        made[tuple(distinct[count > 1].unbind(1))] = _undefined(x, name)
    return made


def _elements(x: Tensor, at: Tensor, rows: Tensor, axis: int, name: str) -> Tensor:
    within(at, 0, x.shape[axis], f"layer {name}")
    made = x.scatter(axis, at, rows)
    count = torch.zeros(x.shape, dtype=torch.int32).scatter_add(
        axis, at, torch.ones_like(at, dtype=torch.int32)
    )
    if count.numel() and int(count.max()) > 1:
        made[count > 1] = _undefined(x, name)
    return made


def _undefined(x: Tensor, name: str) -> float:
    if not x.is_floating_point():
        raise ReplayError(f"layer {name} writes a place twice")
    return float("nan")
