"""That the pieces of one rank's tensor stand in the order which the model computes with, and fill it exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

from mm2c.proofs.failure import ProofError
from mm2c.proofs.ownership import ATTENTION, EMBED, EXPERTS, HEAD, Ownership
from mm2c.proofs.pieces import Axis, Piece
from mm2c.proofs.scale_blocks import SCALE_SUFFIX


@dataclass(frozen=True)
class Placed:
    """A piece by its role ``name``: ``axes`` span all rows of its run. ``experts``: of the model, (first, behind the
    last), at ``axes[lead]``; lead -1 for what is no expert's."""

    name: str
    key: str
    piece: Piece
    axes: tuple[Axis, ...]
    lead: int = -1
    experts: tuple[int, int] = (0, 0)

    @property
    def is_scale(self) -> bool:
        return self.name.endswith(SCALE_SUFFIX)

    def along(self, source: int) -> Axis:
        return self.piece.along(source)


def check_placement(shape: tuple[int, ...], placed: Sequence[Placed], own: Ownership) -> None:
    """Raises ProofError for tensors that do not belong together, or in another order than q, k, v or gate, up."""
    names = sorted({p.name for p in placed})
    plain = {name.removesuffix(SCALE_SUFFIX) for name in names}
    if len({p.is_scale for p in placed}) != 1:
        raise ProofError(f"weights and scales are mixed: {', '.join(names)}")
    if plain in ({EXPERTS[0], EXPERTS[1]}, {EXPERTS[2]}):
        _check_experts(shape, placed, own)
    elif len(names) == 1 and not plain & set(EXPERTS):
        _check_joined(shape, placed, names, own)
    elif plain == set(ATTENTION[:3]):
        suffix = SCALE_SUFFIX if placed[0].is_scale else ""
        _check_joined(shape, placed, [name + suffix for name in ATTENTION[:3]], own)
    else:
        raise ProofError(f"tensors that do not belong together: {', '.join(names)}")


def check_coverage(
    shape: tuple[int, ...], placed: Sequence[Placed], fills: Sequence[tuple[Axis, ...]]
) -> None:
    """Every place of the tensor is taken once. ``fills``: padding, which only missing rows of a vocabulary are."""
    if fills and {p.name for p in placed} - {EMBED, HEAD}:
        raise ProofError(f"{placed[0].key} is padded")
    every = [*(p.axes for p in placed), *fills]
    for axes in every:
        if any(axis.start < 0 or axis.stop > size for axis, size in zip(axes, shape, strict=True)):
            raise ProofError(f"a piece ends behind the tensor's shape {shape}")
    for one, other in combinations(every, 2):
        if all(a.meets(b) for a, b in zip(one, other, strict=True)):
            raise ProofError(f"two pieces take the same places: {_places(one)} and {_places(other)}")
    taken = sum(prod(axis.places for axis in axes) for axes in every)
    if taken != prod(shape):
        raise ProofError(f"{taken} of the {prod(shape)} places are taken")


def _places(axes: Sequence[Axis]) -> str:
    return " x ".join(f"[{axis.start}, {axis.stop})" for axis in axes)


def _check_joined(
    shape: tuple[int, ...], placed: Sequence[Placed], order: Sequence[str], own: Ownership
) -> None:
    """One tensor, or several joined along their first axis in this order."""
    rows, wanted = shape[placed[0].piece.target_of(0)], -(-own.config.vocab // own.mapping.tp)
    if order[0] in (EMBED, HEAD) and rows != wanted:
        raise ProofError(f"has {rows} rows of the vocabulary, and every rank {wanted}")
    if len({tuple(p.piece.target_of(n) for n in range(len(p.piece.shape))) for p in placed}) != 1:
        raise ProofError(f"parts of {order[0]} are turned against each other")
    offset = 0
    for name in order:
        some = [p for p in placed if p.name == name]
        begin = min(p.along(0).start for p in some)
        if begin != offset:
            raise ProofError(
                f"{some[0].key} begins at place {begin} and must at {offset}: the order is q, k, v"
            )
        for p in some:
            if not p.is_scale:  # where a scale must be, the weight beside it tells
                for source, (first, _) in enumerate(own.box(name)):
                    _check_linear(p, source, first, offset if source == 0 else 0)
        offset = max(p.along(0).stop for p in some)


def _check_linear(p: Placed, source: int, first: int, offset: int) -> None:
    """Entry ``first`` of the checkpoint tensor stands at ``offset``, the others behind it."""
    axis = p.along(source)
    wanted = offset + axis.first - first
    if axis.start != wanted or (axis.size > 1 and axis.step != 1) or axis.repeat != 1:
        raise ProofError(f"{p.key}: entry {axis.first} stands at place {axis.start} and must at {wanted}")


def _check_experts(shape: tuple[int, ...], placed: Sequence[Placed], own: Ownership) -> None:
    """Experts in ascending order; in each the gate's rows before the up's, or the two alternating. A width may be
    divided into slices that stand one after the other along the experts' axis."""
    local = own.experts[1] - own.experts[0]
    steps = set()
    for p in placed:
        ahead = p.axes[p.lead].start - (p.experts[0] - own.experts[0])
        if ahead < 0 or ahead % local:
            wanted = p.experts[0] - own.experts[0]
            raise ProofError(f"{p.key} stands at place {p.axes[p.lead].start} and must at {wanted}")
        up = p.name.startswith(EXPERTS[1])
        cut = 1 if p.name.startswith(EXPERTS[2]) else 0
        axis = p.along(cut)
        size = shape[p.piece.target_of(cut)]
        width = size if cut else size // 2
        if p.is_scale:
            if not (up * width <= axis.start and axis.stop <= (up + 1) * width):
                raise ProofError(f"{p.key} stands among the scales of the other half")
            continue
        _check_linear(p, 1 - cut, own.box(p.name)[1 - cut][0], 0)
        first = own.box(p.name)[cut][0] + ahead // local * width
        step = 2 if axis.step == 2 else 1
        steps.add(step)
        wanted = (up if step == 2 else up * width) + step * (axis.first - first)
        if (
            axis.start != wanted
            or axis.repeat != 1
            or (step == 2 and cut)
            or (axis.size > 1 and axis.step != step)
        ):
            raise ProofError(f"{p.key}: entry {axis.first} stands at place {axis.start} and must at {wanted}")
    if len(steps) > 1:
        raise ProofError("rows of gate and up alternate in some experts only")
