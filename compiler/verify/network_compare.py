"""How far a replayed network is from ONNX Runtime, stage by stage, and how far it may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mm2c.verify.network_inputs import Caches, output_of

if TYPE_CHECKING:
    from mm2c.verify.script import Piece, Row

Array = np.ndarray[Any, Any]
Precision = Literal["wide", "declared"]
Output = Literal["hidden", "cache", "logits"]

# Parts of a tensor's largest number that an element may be off.
# "wide": both sides compute in f32 and differ in the order of their sums alone; what is wrong is wrong by far more.
WIDE = 1e-4
# "declared": steps of bf16, of which one is 2^-8 of the largest number (its neighbours are 2^-8 to 2^-7 of it away). A
# layer rounds about ten times between its input and what it adds to it: projections, attention, the parts of ranks,
# experts and sums, each by half a step at most, and most of them by less as they are of smaller numbers. What several
# layers round adds up as what is random does.
STEP = 2.0**-8
STEPS = 6.0
# A cache of e4m3: sums that differ in their last bits come out as neighbouring codes, 2^-3 of a number apart.
CODE, SMALLEST_CODE = 2.0**-3, 2.0**-9
WIDE_FP8_CACHE = 2.0**-8
LEFT_OUT = 0.25  # of the tokens may be left out as undecided, at most


def allowed(precision: Precision, layers: int, kv: str = "bf16") -> float:
    """Of a stage of ``layers`` layers, in parts of the largest number. ``kv``: dtype of the cache, "bf16" or "fp8"."""
    if precision == "wide":
        return WIDE_FP8_CACHE if kv == "fp8" else WIDE
    return STEPS * STEP * math.sqrt(layers)


@dataclass(frozen=True)
class StageResult:
    """What one stage's networks made of one case. ``error`` and ``scale``: max |Δ| and max |x| of the output that is
    nearest to what is ``allowed``, or beyond it, and ``typical`` the median of its tokens' errors; ``tokens``: those
    that were judged, ``left_out``: those that were not as they differ and rounding made another choice of experts for
    them or for tokens that they attend to; ``flips``: greedy tokens that differ though the best two are further apart
    than rounding."""

    precision: Precision
    case: str
    stage: int
    layers: str
    plans: tuple[str, ...]
    output: Output
    error: float
    allowed: float
    scale: float
    typical: float
    tokens: int
    left_out: int
    flips: int = 0

    @property
    def passed(self) -> bool:
        judged = self.tokens > 0 and self.left_out <= LEFT_OUT * (self.tokens + self.left_out)
        return self.error <= self.allowed and self.flips == 0 and judged

    @property
    def relative(self) -> float:
        return self.error / self.scale if self.scale else (0.0 if self.error == 0 else math.inf)

    @property
    def steps(self) -> float:
        """The error in steps of bf16."""
        return self.relative / STEP

    def as_json(self) -> dict[str, Any]:
        """Numbers that JSON cannot hold become null."""
        values = {**asdict(self), "relative": self.relative, "bf16_steps": self.steps, "passed": self.passed}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


@dataclass
class _Seen:
    errors: list[NDArray[np.float32]] = field(default_factory=list)
    unsure: list[NDArray[np.bool_]] = field(default_factory=list)
    scale: float = 0.0


class StageErrors:
    """Collects one case of one stage, step by step."""

    def __init__(self, precision: Precision, layers: int, kv: str = "bf16") -> None:
        self.precision, self._share, self._kv = precision, allowed(precision, layers, kv), kv
        self._seen: dict[Output, _Seen] = {}
        self._plans: dict[str, None] = {}
        self._logits: list[tuple[Array, Array]] = []

    def add(
        self, plan: str, found: Mapping[str, Array], wanted: Mapping[str, Array], unsure: NDArray[np.bool_]
    ) -> None:
        """A step's hidden states and logits of one rank; ``unsure``: bool[batch, seq]."""
        self._plans[plan] = None
        for name, want in wanted.items():
            head = name.partition(".")[0]
            if head in ("hidden_out", "logits"):
                each = _by_token(_difference(_f32(found[name]), want), len(unsure))
                last = unsure[:, unsure.shape[1] - each.shape[1] :]
                self._add("hidden" if head == "hidden_out" else "logits", each, last, want)

    def add_caches(
        self,
        caches: Caches,
        rows: Sequence[Row],
        pieces: Sequence[Piece],
        fed: Mapping[str, Array],
        found: Mapping[str, Array],
        wanted: Mapping[str, Array],
        unsure: NDArray[np.bool_],
        token_axis: int,
    ) -> None:
        """What a step wrote into the caches of one rank; everything else is to be as it was."""
        for name in fed:
            if "_cache." not in name:
                continue
            before, got, want = (
                fed[name],
                _f32(found[output_of(name)]),
                _f32(wanted[output_of(name)]),
            )
            if got.shape != before.shape:
                got = np.full_like(before, np.nan)
            rest = got.copy()
            for index, piece in enumerate(pieces):
                place = caches.place(rows[piece.row], piece, index)
                rest[place] = before[place]
                ours, theirs = (np.moveaxis(value[place], token_axis, 0) for value in (got, want))
                each = _difference(ours, theirs)
                if self._kv == "fp8":
                    each = np.maximum(each - np.maximum(CODE * np.abs(theirs), SMALLEST_CODE), 0)
                each = each.reshape(1, piece.stop - piece.start, -1).max(-1)
                self._add("cache", each, unsure[index : index + 1], theirs)
            if not np.array_equal(rest, before):
                self._add("cache", np.full((1, 1), np.inf, np.float32), np.zeros((1, 1), bool), before)

    def add_logits(self, found: Array, wanted: Array) -> None:
        """[batch, V] or [batch, seq, V] of the whole vocabulary, for the greedy tokens."""
        vocabulary = wanted.shape[-1]
        self._logits.append((found.reshape(-1, vocabulary), wanted.reshape(-1, vocabulary)))

    def result(self, case: str, stage: int, layers: str) -> StageResult:
        """The output that is worst; of no tokens, where all were left out."""
        share = self._share
        judged = [_judge(output, seen, share) for output, seen in self._seen.items()]
        worst = max(judged, key=lambda one: one.badness)
        return StageResult(
            self.precision,
            case,
            stage,
            layers,
            tuple(self._plans),
            worst.output,
            worst.error,
            worst.limit,
            worst.scale,
            worst.typical,
            worst.tokens,
            worst.left_out,
            self._flips(share, worst.left_out),
        )

    def _add(self, output: Output, each: Array, unsure: NDArray[np.bool_], values: Array) -> None:
        seen = self._seen.setdefault(output, _Seen())
        seen.errors.append(each.reshape(-1).astype(np.float32))
        seen.unsure.append(unsure.reshape(-1))
        seen.scale = max(seen.scale, float(np.abs(values[np.isfinite(values)]).max(initial=0)))

    def _flips(self, share: float, left_out: int) -> int:
        if not self._logits or left_out:
            return 0
        found, wanted = (np.concatenate(part) for part in zip(*self._logits, strict=True))
        return clear_flips(found, wanted, share * float(np.abs(wanted).max()))


def clear_flips(ours: Array, theirs: Array, limit: float) -> int:
    """Greedy tokens that differ though the wanted best two are further apart than two errors of ``limit``."""
    best = np.sort(theirs, -1)[:, -2:]
    clear = best[:, -1] - best[:, 0] > 2 * limit if theirs.shape[-1] > 1 else np.ones(len(theirs), bool)
    return int(((ours.argmax(-1) != theirs.argmax(-1)) & clear).sum())


@dataclass(frozen=True)
class _Judged:
    output: Output
    error: float
    limit: float
    scale: float
    typical: float
    tokens: int
    left_out: int

    @property
    def badness(self) -> float:
        if not self.error <= self.limit:
            return math.inf
        return (self.error / self.limit if self.limit else 0.0) + self.left_out / (
            self.tokens + self.left_out
        )


def _judge(output: Output, seen: _Seen, share: float) -> _Judged:
    each, unsure = np.concatenate(seen.errors), np.concatenate(seen.unsure)
    limit = share * seen.scale
    keep = ~(unsure & ~(each <= limit))
    if not keep.any():
        keep[:] = True
    own = each[keep]  # numpy's max keeps a NaN
    return _Judged(
        output, float(own.max()), limit, seen.scale, float(np.median(own)), len(own), int((~keep).sum())
    )


def _by_token(errors: Array, batch: int) -> Array:
    """Largest error of each token: [batch, seq, …] -> [batch, seq], [batch, …] -> [batch, 1]."""
    found: Array = errors.reshape(batch, -1, errors.shape[-1]).max(-1)
    return found


def _difference(found: Array, wanted: Array) -> Array:
    """Nothing where both are the same infinity, as logits beyond the vocabulary are; infinite where the shapes differ
    already."""
    if found.shape != wanted.shape:
        return np.full_like(wanted, np.inf)
    with np.errstate(invalid="ignore"):
        return np.where(found == wanted, 0, np.abs(found - wanted))


def _f32(values: Any) -> Array:
    return np.asarray(values, np.float32)
