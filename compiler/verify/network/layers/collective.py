"""DIST_COLLECTIVE: where a rank waits for the others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mm2c.verify.network.calls import Collective, CollectiveCall
from mm2c.verify.network.dtypes import FLOATS, INTEGERS, Precision
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.given import tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView

KIND = "DIST_COLLECTIVE"


@evaluates(KIND, "IDistCollectiveLayer")
def dist_collective(view: LayerView) -> Evaluate:
    view.only(0)
    asked = _asked(view)
    if (asked.operation, asked.reduce if asked.operation == "all_reduce" else "") not in (
        ("all_reduce", "sum"),
        ("all_gather", ""),
    ):
        view.refuse(f"{asked.operation} of {asked.reduce}")
    if asked.operation == "all_gather" and asked.axis != 0:
        view.refuse(f"all_gather along axis {asked.axis}")
    if any(len(group) != view.layer.num_ranks for group in asked.groups):
        view.refuse(f"a layer of {view.layer.num_ranks} ranks for groups {asked.groups}")
    if view.input(0).dtype not in FLOATS | INTEGERS:
        view.refuse(view.input(0).dtype)

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        raise ReplayError(f"layer {view.name} exchanges with other ranks")

    return evaluate


def call_of(view: LayerView, given: Sequence[Tensor | None]) -> CollectiveCall | None:
    """What the layer asks of the other ranks, None for a layer of another kind."""
    if view.kind != KIND:
        return None
    asked = _asked(view)
    return CollectiveCall(
        view.origin or view.name, asked.operation, asked.reduce, asked.groups, tensor(given, 0)
    )


def _asked(view: LayerView) -> Collective:
    """By the node that the layer was made of: the binding does not tell the operation."""
    asked = view.collectives.get(view.origin or view.name)
    if asked is None:
        view.refuse("nothing is known of what it asks for; the graph's collectives_of tells")
    return asked
