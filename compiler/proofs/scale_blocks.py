"""That every number of a weight meets the scale of its own block, wherever a cut has put the two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mm2c.config import BLOCK
from mm2c.proofs.failure import ProofError
from mm2c.proofs.pieces import Axis, Run

SCALE_SUFFIX = "_scale_inv"


def check_dequantized(weight: Sequence[Run], scale: Sequence[Run], block_n: int, block_k: int) -> None:
    """The scales that a dequantised tensor is multiplied by, at places ``place // block`` of theirs."""
    found = _axes_by_key(scale)
    for run in weight:
        for piece in run.pieces:
            known = None
            for row in range(len(run.keys)):
                key = run.key(piece, row)
                axes = found.get((key + SCALE_SUFFIX, run.start + row if run.lead >= 0 else -1))
                if axes is None:
                    raise ProofError(f"{key} is dequantised by scales that are not its own")
                if axes != known:  # rows of one form are checked once
                    for axis, blocks, side in zip(piece.axes[-2:], axes, (block_n, block_k), strict=True):
                        check_axis(key, axis, blocks, side)
                known = axes


def check_pairs(rows: Sequence[tuple[str, ...]], scales: Iterable[str]) -> None:
    """``rows``: keys of parts of equal form; what is weight and scale in the first is so in each of them."""
    first = rows[0]
    for key in set(scales):
        scale, weight = first.index(key), first.index(key.removesuffix(SCALE_SUFFIX))
        for row in rows:
            if row[scale] != row[weight] + SCALE_SUFFIX:
                raise ProofError(f"{row[weight]} is dequantised by {row[scale]}")


def check_axis(key: str, axis: Axis, blocks: Sequence[Axis], side: int, *, origin: int = 0) -> None:
    """``blocks`` are the axes of the scales of one axis of a weight, whose place p is multiplied by the scale at
    ``(p - origin) // side``."""
    if axis.step != 1 or axis.repeat != 1:
        raise ProofError(f"{key}: blocks of {side} cannot be followed through an axis of steps {axis.step}")
    at = {}
    for part in blocks:
        for entry in range(part.size):
            for nth in range(part.repeat):
                at[part.start + part.step * entry + nth] = part.first + entry
    begin, end = axis.start - origin, axis.start - origin + axis.size
    for place in range(begin // side, -(-end // side)):
        first = axis.first + max(place * side, begin) - begin
        last = axis.first + min((place + 1) * side, end) - begin - 1
        wanted = first // BLOCK
        if last // BLOCK != wanted:
            raise ProofError(f"{key}: entries {first} to {last} share a scale, but are of two blocks")
        if at.get(place) != wanted:
            given = f"that of block {at[place]}" if place in at else "no scale"
            raise ProofError(f"{key}: entries {first} to {last} are of block {wanted}, but get {given}")


def check_scales(key: str, weight: Axis, scales: Sequence[Axis], side: int) -> None:
    """The same for a weight and its scales that are tensors of their own, or parts of such: both begin where they
    do, and there are as many scales as blocks of ``side``."""
    begin, end = min(part.start for part in scales), max(part.stop for part in scales)
    if end - begin != -(-weight.size // side):
        raise ProofError(f"{key}: {weight.size} entries in blocks of {side} have {end - begin} scales")
    check_axis(key, weight, [part.shifted(-begin) for part in scales], side, origin=weight.start)


def _axes_by_key(runs: Sequence[Run]) -> dict[tuple[str, int], tuple[list[Axis], list[Axis]]]:
    """The last two axes of every scale's pieces, by its key and its place along the lead axis."""
    found: dict[tuple[str, int], tuple[list[Axis], list[Axis]]] = {}
    for run in runs:
        for piece in run.pieces:
            for row in range(len(run.keys)):
                place = run.start + row if run.lead >= 0 else -1
                axes = found.setdefault((run.key(piece, row), place), ([], []))
                axes[0].append(piece.axes[-2])
                axes[1].append(piece.axes[-1])
    return found
