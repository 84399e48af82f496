"""Collectives between ranks: what a graph asks for, and what a replay stops at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import onnx

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Collective:
    """``operation``: "all_reduce" (``reduce``: "sum") or "all_gather" (along ``axis``, which is 0). ``groups``: the
    ranks that exchange with each other; one group of all ranks where the node names none."""

    operation: str
    reduce: str
    groups: tuple[tuple[int, ...], ...]
    axis: int = 0


Collectives: TypeAlias = Mapping[str, Collective]


@dataclass(frozen=True)
class CollectiveCall:
    """A rank waits in layer ``name`` with its own ``tensor``."""

    name: str
    operation: str
    reduce: str
    groups: tuple[tuple[int, ...], ...]
    tensor: Tensor


def collectives_of(model: onnx.ModelProto | bytes) -> dict[str, Collective]:
    """What the DistCollective nodes of a plan's graph ask for, by node name.

    TensorRT's Python interface tells of such a layer how many ranks it has, and nothing else. So a replay takes the
    rest from the node that the layer was made of.
    """
    if isinstance(model, bytes):
        model = onnx.load_model_from_string(model)
    found = {}
    for node in model.graph.node:
        if node.op_type == "DistCollective":
            given = {
                attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
            }
            found[node.name] = _collective(given)
    return found


def _collective(given: Mapping[str, object]) -> Collective:
    ranks, size, axis = given["nb_rank"], given.get("group_size", 0), given.get("axis", 0)
    flat = given.get("groups", ())
    assert isinstance(ranks, int)
    assert isinstance(size, int)
    assert isinstance(axis, int)
    assert isinstance(flat, (list, tuple))
    groups = tuple(tuple(flat[at : at + size]) for at in range(0, len(flat), size)) if flat else ()
    operation, reduce = (given[key] for key in ("collective_operation", "reduce_op"))
    assert isinstance(operation, bytes)
    assert isinstance(reduce, bytes)
    return Collective(operation.decode(), reduce.decode(), groups or (tuple(range(ranks)),), axis)
