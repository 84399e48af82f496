"""Whether boxes tile a larger one exactly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise, product
from math import prod

from mm2c.proofs.pieces import Box


def volume(box: Box) -> int:
    return prod(stop - start for start, stop in box)


def fault(boxes: Sequence[Box], whole: Box) -> str | None:
    """None where every entry of ``whole`` is in exactly one box and none outside; else what is wrong first."""
    for box in boxes:
        if any(a < c or b > d for (a, b), (c, d) in zip(box, whole, strict=True)):
            return f"{shown(box)} is not within {shown(whole)}"
    for one, other in combinations(boxes, 2):
        common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
        if all(start < stop for start, stop in common):
            return f"{shown(common)} is there twice"
    if sum(map(volume, boxes)) == volume(whole):
        return None
    return f"{shown(_gap(boxes, whole))} is missing"


def _gap(boxes: Sequence[Box], whole: Box) -> Box:
    """The first box between the boxes' edges that none of them covers."""
    edges = []
    for axis, (start, stop) in enumerate(whole):
        marks = {start, stop, *(mark for box in boxes for mark in box[axis])}
        edges.append(sorted(marks))
    cells = product(*(list(pairwise(marks)) for marks in edges))
    for cell in cells:
        covered = any(
            all(a <= c and d <= b for (a, b), (c, d) in zip(box, cell, strict=True)) for box in boxes
        )
        if not covered:
            return tuple(cell)
    return whole


def shown(box: Box) -> str:
    return " x ".join(f"[{start}, {stop})" for start, stop in box)
