"""How far an engine's layer is from the reference's, and how far it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm2c.verify.layer_engine import Computed, HeadOutput, Hidden
from mm2c.verify.logits import TOLERANCE
from mm2c.verify.script import Piece

# By dtype of the activations. ``ADDED``: of the largest number that the layer adds to the hidden state, ``CARRIED``: of
# the largest hidden state, both as parts that an element may be off. bf16 rounds to 2^-9 of a number, several times
# in a layer; a cache of e4m3 rounds keys and values to 2^-4.
ADDED = {"f32": TOLERANCE, "bf16": 2.0**-6, "bf16, fp8 cache": 2.0**-4}
CARRIED = {"f32": 2.0**-21, "bf16": 2.0**-7, "bf16, fp8 cache": 2.0**-7}
LOGITS = {"f32": TOLERANCE, "bf16": 2.0**-6, "bf16, fp8 cache": 2.0**-5}
# Scores of two experts this near to each other may come out in another order: a token that then differs says nothing.
TIE = {"f32": 2.0**-18, "bf16": 2.0**-8, "bf16, fp8 cache": 2.0**-6}
CHAIN_TIE = 2.0**-15  # in fp32, after many layers


@dataclass(frozen=True)
class LayerResult:
    """One layer of one engine. ``error``: max |Δ| where the layer is fed the reference's input, against ``allowed``;
    ``scale``: max |hidden state|; ``chain``: max |Δ| on the engine's own chain; ``ties``: tokens left out because
    they differ and the router's choice hangs on rounding; ``compared``: tokens that were judged, of the rank with most;
    ``ranks``: those that are outside ``allowed``, ``part`` where in the layer it begins, ``tensors`` the stored
    tensors that are not what they should be."""

    engine: str
    dtype: str
    layer: str  # "embedding", a number, "logits"
    error: float
    allowed: float
    scale: float
    chain: float
    compared: int
    ties: int = 0
    flips: int = 0
    ranks: tuple[int, ...] = ()
    part: str = ""
    tensors: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed and self.flips == 0

    @property
    def relative(self) -> float:
        return self.error / self.scale if self.scale else (0.0 if self.error == 0 else math.inf)

    @property
    def place(self) -> str:
        return f"layer {self.layer}" if self.layer.isdigit() else f"the {self.layer}"

    def as_json(self) -> dict[str, Any]:
        """Numbers that JSON cannot hold become null."""
        values = {**asdict(self), "relative": self.relative, "passed": self.passed}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


@dataclass(frozen=True)
class Compared:
    error: float
    allowed: float
    scale: float
    tokens: int
    ties: int
    ranks: tuple[int, ...]


def compare_hidden(
    found: Sequence[Computed],
    wanted: Sequence[Any],
    before: Sequence[Any],
    margin: Sequence[Any] | None,
    dtype: str,
) -> Compared:
    """Every rank's values against ``wanted`` by row f32[tokens, H]; ``before``: the layer's input; ``margin``: by
    row f32[tokens]. A token outside tolerance whose margin is below the tie of ``dtype`` is left out, unless there is
    no other."""
    scale = added = 0.0
    errors: dict[int, list[NDArray[np.float32]]] = {}  # by rank, of each of its tokens
    ranks_of: dict[int, list[NDArray[np.bool_]]] = {}
    for computed in found:
        piece = computed.piece
        for place, (rank, values) in enumerate(computed.values):
            part = slice(piece.stop - len(values), piece.stop)
            want = wanted[piece.row][part].numpy()
            tie = np.zeros(len(values), bool)
            if margin is not None:
                tie = margin[piece.row][part].numpy() < TIE[dtype]
            if place == 0:
                scale = max(scale, float(np.abs(want).max()))
                added = max(added, float(np.abs(want - before[piece.row][part].numpy()).max()))
            errors.setdefault(rank, []).append(np.abs(values - want).max(-1))
            ranks_of.setdefault(rank, []).append(tie)
    allowed = ADDED[dtype] * added + CARRIED[dtype] * scale
    worst = {}
    left_out = compared = 0
    for rank, parts in errors.items():
        each, ties = np.concatenate(parts), np.concatenate(ranks_of[rank])
        keep = ~(ties & ~(each <= allowed))
        if not keep.any():
            keep[:] = True
        worst[rank] = float(each[keep].max())  # numpy's max keeps a NaN
        left_out, compared = max(left_out, int((~keep).sum())), max(compared, int(keep.sum()))
    error = 0.0
    for value in worst.values():
        error = _worse(error, value)
    outside = tuple(sorted(rank for rank, value in worst.items() if not value <= allowed))
    return Compared(error, allowed, scale, compared, left_out, outside)


def _worse(one: float, other: float) -> float:
    """The larger; NaN is largest of all."""
    return other if math.isnan(other) or other > one else one


def compare_logits(
    output: HeadOutput,
    wanted: dict[Piece, Hidden],
    dtype: str,
    engine: str,
    *,
    chain_ties: int,
) -> LayerResult:
    """The head's result. In fp32 the chain counts too, where no token of it hangs on rounding (``chain_ties``)."""
    pieces = list(wanted)
    theirs = np.stack([wanted[piece] for piece in pieces])
    fed = np.stack([output.fed[piece] for piece in pieces])
    chain = np.stack([output.chain[piece] for piece in pieces])
    scale = float(np.abs(theirs).max())
    allowed = LOGITS[dtype] * scale
    error, chained = float(np.abs(fed - theirs).max()), float(np.abs(chain - theirs).max())
    flips = _flips(fed, theirs, allowed)
    if dtype == "f32" and not chain_ties:
        flips = max(flips, _flips(chain, theirs, allowed))
        error = _worse(error, chained)
    return LayerResult(engine, dtype, "logits", error, allowed, scale, chained, len(pieces), flips=flips)


def _flips(ours: Hidden, theirs: Hidden, allowed: float) -> int:
    """Greedy tokens that differ though the reference's best two are further apart than rounding."""
    best = np.sort(theirs, -1)[:, -2:]
    clear = best[:, -1] - best[:, 0] > 2 * allowed if theirs.shape[-1] > 1 else np.ones(len(theirs), bool)
    return int(((ours.argmax(-1) != theirs.argmax(-1)) & clear).sum())


def chain_relative(output: HeadOutput, wanted: dict[Piece, Hidden]) -> dict[Piece, float]:
    """By piece, max |Δ| of the chain's logits in parts of the largest reference logit."""
    return {
        piece: float(np.abs(output.chain[piece] - want).max() / max(float(np.abs(want).max()), 1e-30))
        for piece, want in wanted.items()
    }


def engine_dtype(dtype: str, kv: str) -> str:
    """The row of the tables: "f32", "bf16", or "bf16, fp8 cache"."""
    return "bf16, fp8 cache" if dtype == "bf16" and kv == "fp8" else dtype
