"""All stages of a bundle's plans over scripts of steps: ONNX Runtime, and two replays of TensorRT's networks.

The wide replay is a chain of its own, as ONNX Runtime's is: hidden states go from stage to stage and caches from step
to step. The declared one is fed at every stage with what ONNX Runtime made, rounded as the plan's inputs are, so that
its error is one stage's rounding. Where caches are e4m3, the exact chain is ONNX Runtime with caches of f32: the
rounding of keys and values is no error, and turns the choice of experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm2c.verify.network_compare import Precision, StageErrors, StageResult, allowed
from mm2c.verify.network_inputs import TOKEN_AXIS, Caches, make_caches, step_feeds
from mm2c.verify.network_router import Choice, choice_of, unsure_tokens
from mm2c.verify.network_stage import Lane, StagePlan, run_ranks
from mm2c.verify.network_weights import StageTensors, TensorsOf
from mm2c_runtime.errors import BundleError

if TYPE_CHECKING:
    from mm2c.progress import Progress
    from mm2c.verify.script import Piece, Script
    from mm2c.verify.tensor_source import TensorSource
    from mm2c_runtime.manifest import Manifest
    from mm2c_runtime.manifest_tensorrt import TensorRTProgram

Array = np.ndarray[Any, Any]
PRECISIONS: tuple[Precision, ...] = ("wide", "declared")


@dataclass(frozen=True)
class Case:
    """``name``: of the script's prefill steps; its decode steps are the case "decode"."""

    name: str
    script: Script

    def name_of(self, pieces: Sequence[Piece]) -> str:
        return "decode" if pieces[0].start >= self.script.rows[pieces[0].row].prompt else self.name


@dataclass
class Chain:
    """What was found. ``judged``: the chains that are to agree with the reference; ``logits``: theirs, by index of the
    case and piece f32[V] of the piece's last token; ``unsure``: logits whose token hangs on rounding, alike.
    ``layers``: of all networks together."""

    results: list[StageResult] = field(default_factory=list)
    judged: tuple[Lane, ...] = ("onnxruntime", "wide")
    logits: dict[Lane, dict[tuple[int, Piece], Array]] = field(default_factory=dict)
    unsure: set[tuple[int, Piece]] = field(default_factory=set)
    layers: int = 0
    plans: int = 0


def replay_plans(
    trt: Any,
    bundle: Path,
    manifest: Manifest,
    sources: Sequence[TensorSource],
    cases: Sequence[Case],
    progress: Progress,
    threads: int = 1,
) -> Chain:
    """Every stage over every step; a stage's weights are in memory while it runs. ``sources``: of the ranks.

    Raises:
        BundleError: a graph, tensor or stage is not as the manifest says, or no run takes a step.
        ReplayError: a network cannot be evaluated.
    """
    program = manifest.tensorrt
    assert program is not None
    return _Replay(trt, bundle, manifest, program, sources, cases, threads).run(progress)


class _Replay:
    def __init__(
        self,
        trt: Any,
        bundle: Path,
        manifest: Manifest,
        program: TensorRTProgram,
        sources: Sequence[TensorSource],
        cases: Sequence[Case],
        threads: int,
    ) -> None:
        self._trt, self._bundle, self._manifest, self._program = trt, bundle, manifest, program
        self._sources, self._cases, self._threads = sources, cases, threads
        self._plans: dict[int, StagePlan] = {}
        self._kv = program.kv
        self._rows = 1 + max(row.place for case in cases for row in case.script.rows)
        self._longest = max(case.script.longest for case in cases)
        # by lane, case and step: of each rank, what the stage before handed on
        self._hidden: dict[tuple[Lane, int, int], list[dict[str, Array]]] = {}
        self._shaky = [[np.zeros(len(row.ids), bool) for row in case.script.rows] for case in cases]
        rounded = self._kv.dtype == "fp8"
        self._chains: list[Lane] = ["onnxruntime", "wide"]
        if rounded:
            self._chains.append("exact")
        self._chain = Chain(judged=("exact",) if rounded else ("onnxruntime", "wide"))

    def run(self, progress: Progress) -> Chain:
        stages = self._check_stages()
        steps = sum(len(case.script.steps) for case in self._cases)
        for index, first in enumerate(stages):
            depth = self._plans_of(index, 1, 1)[0].plan.layers
            label = f"layers {first}–{first + depth - 1}" if depth > 1 else f"layer {first}"
            with progress.stage(f"replay: {label}", steps) as stage:
                self._run_stage(index, first, depth, stage)
        self._chain.plans = len(self._plans)
        self._chain.layers = sum(plan.network_layers for plan in self._plans.values())
        return self._chain

    def _check_stages(self) -> list[int]:
        """First layers of the stages, which every rank and run has alike: a stage runs all steps before the next one
        is read."""
        cuts = {
            tuple(stage.first_layer for stage in run.stages)
            for rank in self._program.ranks
            for run in rank.runs
        }
        if len(cuts) != 1:
            raise BundleError("the runs are cut at different layers", where=str(self._bundle))
        return list(next(iter(cuts)))

    def _plans_of(self, index: int, batch: int, seq: int) -> list[StagePlan]:
        """Every rank's plan of a stage for steps of this size."""
        found = []
        for rank in self._program.ranks:
            run = next((run for run in rank.runs if run.profile.covers(batch, seq)), None)
            if run is None:
                raise BundleError(
                    f"no run of rank {rank.rank} takes a step of {batch} × {seq} tokens",
                    where=str(self._bundle),
                )
            number = run.stages[index].plan
            if number not in self._plans:
                plan = self._program.plans[number]
                self._plans[number] = StagePlan(self._trt, self._bundle, plan, self._threads)
            found.append(self._plans[number])
        return found

    def _run_stage(self, index: int, first: int, depth: int, progress: Any) -> None:
        errors: dict[tuple[str, Precision], StageErrors] = {}
        tensors = TensorsOf(self._program, self._sources, first)
        caches: dict[Lane, list[Caches]] = {}
        for number, case in enumerate(self._cases):
            for at, step in enumerate(case.script.steps):
                pieces = step.pieces
                plans = self._plans_of(index, len(pieces), pieces[0].stop - pieces[0].start)
                caches = caches or {
                    lane: [self._new_caches(plan, lane) for plan in plans] for lane in self._chains
                }
                name = case.name_of(pieces)
                seen = {
                    p: errors.setdefault((name, p), StageErrors(p, depth, self._kv.dtype)) for p in PRECISIONS
                }
                self._run_step(plans, number, at, pieces, tensors.of(plans), caches, seen)
                progress.advance()
        layers = f"{first}-{first + depth - 1}"
        self._chain.results += [own.result(case, index, layers) for (case, _), own in errors.items()]

    def _new_caches(self, plan: StagePlan, lane: Lane) -> Caches:
        return make_caches(self._kv, plan.plan.tensors, self._rows, self._longest, exact=lane == "exact")

    def _run_step(
        self,
        plans: Sequence[StagePlan],
        number: int,
        at: int,
        pieces: Sequence[Piece],
        tensors: list[StageTensors],
        caches: dict[Lane, list[Caches]],
        errors: Mapping[Precision, StageErrors],
    ) -> None:
        rows = self._cases[number].script.rows
        ranks = range(len(plans))
        wanted = {t.name for t in plans[0].plan.tensors if t.mode == "input"}
        step = step_feeds(rows, pieces, self._kv, self._rows, self._longest)
        step = {name: value for name, value in step.items() if name in wanted}

        def feeds(lane: Lane) -> list[dict[str, Array]]:
            hidden = self._hidden.get((lane, number, at), [{}] * len(ranks))
            return [{**step, **hidden[r], **caches[lane][r].feeds(rows, pieces)} for r in ranks]

        given: dict[Lane, list[dict[str, Array]]] = {lane: feeds(lane) for lane in self._chains}
        given["declared"] = [
            plan.narrowed(feed) for plan, feed in zip(plans, given["onnxruntime"], strict=True)
        ]
        made = {lane: run_ranks(plans, tensors, own, lane) for lane, own in given.items()}
        truth = made["onnxruntime"]
        truth_chose = self._choices(plans[0], truth[0], tensors[0], pieces)
        unsure: dict[Precision, NDArray[np.bool_]] = {}
        for precision in errors:
            chose = self._choices(plans[0], made[precision][0], tensors[0], pieces)
            unsure[precision] = unsure_tokens(
                truth_chose, chose, allowed(precision, plans[0].plan.layers, self._kv.dtype)
            )
        unsure["wide"] = self._carried(number, pieces, unsure["wide"])
        axis = TOKEN_AXIS[bool(self._kv.page)]
        for precision, seen in errors.items():
            for r in ranks:
                seen.add(plans[r].plan.name, made[precision][r], truth[r], unsure[precision])
                fed = {name: np.asarray(value, np.float32) for name, value in given[precision][r].items()}
                seen.add_caches(
                    caches["wide"][r],
                    rows,
                    pieces,
                    fed,
                    made[precision][r],
                    truth[r],
                    unsure[precision],
                    axis,
                )
        for lane in self._chains:
            for r in ranks:
                caches[lane][r].take(rows, pieces, made[lane][r])
            self._hidden[lane, number, at] = [_handed_on(own) for own in made[lane]]
        if "logits" in truth[0]:
            self._keep_logits(number, pieces, made, errors, unsure["wide"])

    @staticmethod
    def _choices(
        plan: StagePlan, values: Mapping[str, Array], tensors: StageTensors, pieces: Sequence[Piece]
    ) -> list[Choice]:
        """Of one rank; all ranks have the same router."""
        batch, seq = len(pieces), pieces[0].stop - pieces[0].start
        return [choice_of(r, values[r.logits], tensors.arrays[r.bias], batch, seq) for r in plan.routers]

    def _carried(self, number: int, pieces: Sequence[Piece], own: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """On a chain also what steps and stages before left unsure: bool[batch, seq]."""
        shaky = self._shaky[number]
        found = []
        for index, piece in enumerate(pieces):
            shaky[piece.row][piece.start : piece.stop] |= own[index]
            found.append(np.logical_or.accumulate(shaky[piece.row])[piece.start : piece.stop])
        return np.stack(found)

    def _keep_logits(
        self,
        number: int,
        pieces: Sequence[Piece],
        made: Mapping[Lane, list[dict[str, Array]]],
        errors: Mapping[Precision, StageErrors],
        unsure: NDArray[np.bool_],
    ) -> None:
        whole = {lane: self._whole([own["logits"] for own in made[lane]]) for lane in made}
        for precision, seen in errors.items():
            seen.add_logits(whole[precision], whole["onnxruntime"])
        for index, piece in enumerate(pieces):
            if unsure[index, -1]:
                self._chain.unsure.add((number, piece))
            for lane in self._chain.judged:
                values = whole[lane]
                last = values[index] if values.ndim == 2 else values[index, -1]
                self._chain.logits.setdefault(lane, {})[number, piece] = last.copy()

    def _whole(self, parts: Sequence[Array]) -> Array:
        """Of the whole vocabulary, where each rank has its own part alone."""
        vocabulary = self._manifest.model.vocab
        if parts[0].shape[-1] >= vocabulary:
            return parts[0][..., :vocabulary]
        return np.concatenate(parts, -1)[..., :vocabulary]


def _handed_on(outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name.replace("hidden_out.", "hidden."): value.copy()
        for name, value in outputs.items()
        if name.startswith("hidden_out.")
    }
