"""Inputs of a layer as its evaluator takes them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mm2c.verify.network.errors import ReplayError


def tensor(given: Sequence[Tensor | None], index: int) -> Tensor:
    """An input whose presence was seen when the layer was read."""
    x = given[index]
    assert x is not None
    return x


def numbers(x: Tensor) -> list[int]:
    """The integers of a shape tensor of rank 1."""
    return [int(n) for n in x.reshape(-1).tolist()]


def axis_of(mask: int, rank: int) -> list[int]:
    """The axes of a bit mask, lowest first."""
    return [axis for axis in range(rank) if mask >> axis & 1]


def within(indices: Tensor, low: int, high: int, what: str) -> None:
    """ReplayError where an index lies outside low … high - 1."""
    if indices.numel() and not (low <= int(indices.min()) and int(indices.max()) < high):
        raise ReplayError(
            f"{what}: an index outside {low} … {high - 1}, {int(indices.min())} … {int(indices.max())}"
        )
