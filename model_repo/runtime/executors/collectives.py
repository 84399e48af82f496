"""Collectives between the lockstep ranks of one process, on numpy arrays, in rank order (deterministic)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


def all_reduce(parts: Sequence[Array], out: Array) -> None:
    """out = parts[0] + parts[1] + …, in that order; ``out`` may not overlap a part other than the first."""
    if len(parts) == 1:
        np.copyto(out, parts[0])
        return
    np.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        np.add(out, part, out=out)


def all_gather(parts: Sequence[Array], axis: int, out: Array) -> None:
    """out = the parts one after another along ``axis``."""
    np.concatenate(parts, axis=axis, out=out)


def reduce_scatter(parts: Sequence[Array], axis: int, outs: Sequence[Array]) -> None:
    """outs[i] = the i-th of equal pieces along ``axis`` of the parts' sum; no ``out`` overlaps a part."""
    pieces = [np.split(part, len(outs), axis) for part in parts]
    for place, out in enumerate(outs):
        all_reduce([piece[place] for piece in pieces], out)


def scattered_shape(shape: Sequence[int], axis: int, ranks: int) -> tuple[int, ...]:
    """Shape of each of ``reduce_scatter``'s results for parts of ``shape``. ValueError where it cannot be cut."""
    result = list(shape)
    result[axis], rest = divmod(result[axis], ranks)
    if rest:
        raise ValueError(f"axis {axis} of {list(shape)} cannot be cut for {ranks} ranks")
    return tuple(result)


def gathered_shape(shape: Sequence[int], axis: int, ranks: int) -> tuple[int, ...]:
    """Shape of ``all_gather``'s result for parts of ``shape``."""
    result = list(shape)
    result[axis] *= ranks
    return tuple(result)
