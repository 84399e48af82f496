"""A rank's tensor as boxes of checkpoint tensors, found from its recipe alone.

This shares no code with what evaluates or narrows recipes: it is the other side of the proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mm2c.proofs.failure import ProofError
from mm2c.proofs.forms import alike, keys_of
from mm2c.proofs.pieces import Axis, Piece, Run
from mm2c.proofs.scale_blocks import SCALE_SUFFIX, check_dequantized, check_pairs
from mm2c_runtime.weights.recipe import (
    Cast,
    Computed,
    Concat,
    Dequantize,
    Interleave,
    Pad,
    Quantize,
    QuantizeScale,
    Recipe,
    Repeat,
    Slice,
    Source,
    Stack,
    Transpose,
)

FILL = "fill "  # the key of padding: this and its value


@dataclass
class Boxes:
    """What a tensor is made of. ``scales``: runs of the scales that were multiplied into it, in no place of it.
    ``tables``: what was computed from the configuration; the key of such a piece is the table's kind."""

    dtype: str
    shape: tuple[int, ...]
    runs: list[Run]
    scales: list[Run] = field(default_factory=list)
    tables: list[Computed] = field(default_factory=list)


def decompose(recipe: Recipe) -> Boxes:
    """Raises ProofError for a scale block that does not belong to its weights, or that two tensors would share."""
    boxes = Boxes(recipe.dtype, recipe.shape, [])
    boxes.runs = _runs(recipe, boxes)
    return boxes


def _runs(recipe: Recipe, boxes: Boxes) -> list[Run]:
    if isinstance(recipe, Source):
        return [_whole(recipe.key, recipe.dtype, recipe.shape)]
    if isinstance(recipe, Computed):
        boxes.tables.append(recipe)
        return [_whole(recipe.kind, recipe.dtype, recipe.shape)]
    if isinstance(recipe, Stack):
        return list(_stacked(recipe, boxes))
    if isinstance(recipe, Concat):
        return list(_joined(recipe, boxes))
    if isinstance(recipe, Dequantize):
        weight, scale = _runs(recipe.weight, boxes), _runs(recipe.scale, boxes)
        check_dequantized(weight, scale, recipe.block_n, recipe.block_k)
        boxes.scales += scale
        return _converted(weight, "dequantize")
    inner = _runs(recipe.of, boxes)
    if isinstance(recipe, Slice):
        return [part for run in inner for part in _sliced(run, recipe.axis, recipe.start, recipe.stop)]
    if isinstance(recipe, Transpose):
        return [_turned(run, recipe.perm) for run in inner]
    if isinstance(recipe, Cast):
        return inner if recipe.to == recipe.of.dtype else _converted(inner, f"cast {recipe.to}")
    if isinstance(recipe, Pad):
        return [*inner, *_filling(recipe)]
    if isinstance(recipe, Repeat):
        return list(_repeated(inner, recipe.axis, recipe.times))
    if isinstance(recipe, Interleave):
        return list(_interleaved(inner, recipe.axis, recipe.shape[recipe.axis]))
    if isinstance(recipe, Quantize):
        return _converted(inner, f"quantize {recipe.block_n} x {recipe.block_k}")
    return _scales_of(inner, recipe)


def _whole(key: str, dtype: str, shape: tuple[int, ...]) -> Run:
    axes = tuple(Axis(n, 0, size, 0) for n, size in enumerate(shape))
    return Run(-1, 0, [(key,)], (Piece(0, dtype, shape, axes),))


def _converted(runs: Iterable[Run], how: str) -> list[Run]:
    return [
        run._replace(pieces=tuple(piece._replace(how=(*piece.how, how)) for piece in run.pieces))
        for run in runs
    ]


def _stacked(recipe: Stack, boxes: Boxes) -> Iterator[Run]:
    """Parts that differ in nothing but their keys become one run; the first of them is taken apart."""
    parts = recipe.parts
    if any(part.shape != parts[0].shape for part in parts):
        raise ProofError(f"tensors of shape {parts[0].shape} and of others are stacked")
    begin = 0
    while begin < len(parts):
        rows, end = [keys_of(parts[begin])], begin + 1
        while end < len(parts) and (row := alike(parts[begin], parts[end])) is not None:
            rows.append(row)
            end += 1
        one = Boxes(boxes.dtype, boxes.shape, [])
        inner = _runs(parts[begin], one)
        if len(set(rows[0])) == len(rows[0]) and all(run.lead < 0 for run in (*inner, *one.scales)):
            check_pairs(rows, [run.keys[0][0] for run in one.scales])
            yield from (_under(run, begin, rows) for run in inner)
            boxes.scales += [_under(run, begin, rows) for run in one.scales]
            boxes.tables += one.tables
        else:  # stacks in stacks, or one tensor twice in a part
            for place in range(begin, end):
                yield from (_placed(run, place) for run in _runs(parts[place], boxes))
        begin = end


def _under(run: Run, begin: int, rows: list[tuple[str, ...]]) -> Run:
    """A run of one stacked part, for all the parts of its form."""
    slots = {key: slot for slot, key in enumerate(rows[0])}
    lead = Axis(-1, 0, 1, 0)
    pieces = tuple(
        piece._replace(slot=slots[run.keys[0][piece.slot]], axes=(lead, *piece.axes)) for piece in run.pieces
    )
    return Run(0, begin, rows, pieces)


def _placed(run: Run, place: int) -> Run:
    """A run of one stacked part at its place in the stack."""
    here = Axis(-1, 0, 1, place)
    pieces = tuple(piece._replace(axes=(here, *piece.axes)) for piece in run.pieces)
    return run._replace(lead=run.lead + 1 if run.lead >= 0 else -1, pieces=pieces)


def _joined(recipe: Concat, boxes: Boxes) -> Iterator[Run]:
    offset, axis = 0, recipe.axis
    for part in recipe.parts:
        if part.dtype != recipe.dtype:
            raise ProofError(f"{part.dtype} and {recipe.dtype} are joined")
        for run in _runs(part, boxes):
            if axis == run.lead:
                yield run._replace(start=run.start + offset)
            else:
                shifted = (piece.with_axis(axis, piece.axes[axis].shifted(offset)) for piece in run.pieces)
                yield run._replace(pieces=tuple(shifted))
        offset += part.shape[axis]


def _sliced(run: Run, axis: int, low: int, high: int) -> Iterator[Run]:
    if axis == run.lead:
        begin, end = max(low, run.start), min(high, run.start + len(run.keys))
        if begin < end:
            yield run._replace(start=begin - low, keys=run.keys[begin - run.start : end - run.start])
        return
    kept = [piece.with_axis(axis, part) for piece in run.pieces for part in piece.axes[axis].cut(low, high)]
    if kept:
        yield run._replace(pieces=tuple(kept))


def _turned(run: Run, perm: tuple[int, ...]) -> Run:
    lead = perm.index(run.lead) if run.lead >= 0 else -1
    pieces = tuple(piece._replace(axes=tuple(piece.axes[p] for p in perm)) for piece in run.pieces)
    return run._replace(lead=lead, pieces=pieces)


def _repeated(runs: Iterable[Run], axis: int, times: int) -> Iterator[Run]:
    for run in _without_lead(runs, axis):
        pieces = tuple(piece.with_axis(axis, piece.axes[axis].repeated(times)) for piece in run.pieces)
        yield run._replace(pieces=pieces)


def _interleaved(runs: Iterable[Run], axis: int, size: int) -> Iterator[Run]:
    """Place i of the first half goes to 2i, of the second half to 2i + 1."""
    half = size // 2
    for run in _without_lead(runs, axis):
        pieces = []
        for piece in run.pieces:
            for parity in (0, 1):
                for part in piece.axes[axis].cut(parity * half, (parity + 1) * half):
                    for single in part.single():
                        spread = single._replace(start=2 * single.start + parity, step=2 * single.step)
                        pieces.append(piece.with_axis(axis, spread))
        yield run._replace(pieces=tuple(pieces))


def _without_lead(runs: Iterable[Run], axis: int) -> Iterator[Run]:
    """The same runs, none with ``axis`` as its lead axis."""
    for run in runs:
        yield from run.apart() if run.lead == axis else (run,)


def _filling(recipe: Pad) -> Iterator[Run]:
    size = recipe.of.shape[recipe.axis]
    if recipe.to == size:
        return
    shape = (*recipe.shape[: recipe.axis], recipe.to - size, *recipe.shape[recipe.axis + 1 :])
    axes = tuple(Axis(-1, 0, count, size if n == recipe.axis else 0) for n, count in enumerate(shape))
    yield Run(-1, 0, [(f"{FILL}{recipe.value}",)], (Piece(0, recipe.dtype, (), axes),))


def _scales_of(runs: Iterable[Run], recipe: QuantizeScale) -> list[Run]:
    """The scales of a weight that is quantised here, as boxes of the scales that the whole tensor would have."""
    sides = recipe.block_n, recipe.block_k
    lead = len(recipe.shape) - 2
    found = []
    for run in runs:
        pieces = []
        for piece in run.pieces:
            axes, shape = list(piece.axes), list(piece.shape)
            for at, side in enumerate(sides, lead):
                axis = axes[at]
                if at == run.lead or axis.source < 0:
                    raise ProofError(f"{run.key(piece)}: its scales are taken over an axis that it has not")
                axes[at] = _in_blocks(run.key(piece), axis, side, recipe.of.shape[at], shape[axis.source])
                shape[axis.source] = -(-shape[axis.source] // side)
            how = (*piece.how, "scale")
            pieces.append(
                Piece(piece.slot, "f32", tuple(shape), tuple(axes), how, piece.suffix + SCALE_SUFFIX)
            )
        found.append(run._replace(pieces=tuple(pieces)))
    return found


def _in_blocks(key: str, axis: Axis, side: int, size: int, whole: int) -> Axis:
    """An axis of numbers as the axis of their blocks, which must be blocks of the whole tensor."""
    ends = axis.stop == size or axis.size % side == 0
    source_ends = axis.first + axis.size == whole or axis.size % side == 0
    if (
        axis.step != 1
        or axis.repeat != 1
        or axis.start % side
        or axis.first % side
        or not (ends and source_ends)
    ):
        raise ProofError(
            f"{key}: entries [{axis.first}, {axis.first + axis.size}) are not whole scale blocks of {side}"
        )
    return Axis(axis.source, axis.first // side, -(-axis.size // side), axis.start // side)
