"""A bundle's logits against the reference: prefill, chunked prefill, and a ragged batch of decode steps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.manifest import Manifest
from mm2c_runtime.step import RowStep, StepBatch

if TYPE_CHECKING:
    from mm2c.progress import Progress
    from mm2c.verify.reference import Reference
    from mm2c_runtime.executors.base import Executor

TOLERANCE = 1e-5  # max |Δlogits| over max |logits|, both in fp32


@dataclass(frozen=True)
class CaseResult:
    """``error`` and ``scale``: max |Δlogits| and max |reference logits|; ``flips``: greedy tokens that differ."""

    lowering: str
    case: str
    positions: int
    error: float
    scale: float
    flips: int

    @property
    def passed(self) -> bool:
        return self.error <= TOLERANCE * self.scale and self.flips == 0

    @property
    def relative(self) -> float:
        """``error`` in parts of ``scale``; infinite where the reference is all zero and the bundle is not."""
        return self.error / self.scale if self.scale else (0.0 if self.error == 0 else math.inf)

    def as_json(self) -> dict[str, Any]:
        """Numbers that JSON cannot hold (NaN, infinity) become null."""
        values = {**asdict(self), "relative": self.relative, "passed": self.passed}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


@dataclass(frozen=True)
class Trajectory:
    """One row: its prompt, the reference's greedy tokens and their logits f32[steps + 1, vocab]."""

    prompt: list[int]
    tokens: list[int]
    logits: NDArray[np.float32]


def prompts(vocab: int, context: int, chunk: int, rows: int, steps: int, seed: int = 0) -> list[list[int]]:
    """Ragged random prompts: one token, a few, around a chunk's border, and odd lengths in between."""
    rng = np.random.default_rng(seed)
    room = context - steps  # the last decoded token fills the row
    wanted = [1, 7, chunk, chunk + 1, 2 * chunk + 3, 33, 5, 64, 19, 2]
    lengths = [max(1, min(length, room)) for length in (wanted * -(-rows // len(wanted)))[:rows]]
    return [rng.integers(0, vocab, length).tolist() for length in lengths]


def trajectories(
    reference: Reference, some: list[list[int]], steps: int, progress: Progress
) -> list[Trajectory]:
    with progress.stage("reference: transformers, fp32", len(some)) as stage:
        found = []
        for prompt in some:
            tokens, logits = reference.run(prompt, steps)
            found.append(Trajectory(prompt, tokens, logits))
            stage.advance()
    return found


def _last(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Last position of each row: programs with all-token logits return [rows, S, vocab]."""
    return logits if logits.ndim == 2 else np.ascontiguousarray(logits[:, -1])


@dataclass(frozen=True)
class Place:
    """Where a row is computed: an attention group, and a cache row of it."""

    group: int
    row: int


def places(rows: int, groups: int) -> list[Place]:
    """Unevenly: the last of several groups gets every second turn, and groups may stay empty."""
    owners = [min(index % (groups + 1), groups - 1) for index in range(rows)]
    return [Place(owner, owners[:index].count(owner)) for index, owner in enumerate(owners)]


def _prefill(executor: Executor, place: Place, prompt: list[int], chunk: int) -> NDArray[np.float32]:
    """Of one row, while other groups have nothing to do."""
    logits = None
    for start in range(0, len(prompt), chunk):
        part = prompt[start : start + chunk]
        step = RowStep(row=place.row, tokens=part, past_len=start, new_len=len(part), sample=False)
        batches: list[StepBatch | None] = [None] * executor.kv.groups
        batches[place.group] = StepBatch(step_id=start, kind="prefill", rows=[step])
        logits = executor.forwards(batches)[place.group]
    assert logits is not None
    first: NDArray[np.float32] = _last(logits)[0]
    return first


def _decode(
    executor: Executor, where: list[Place], rows: list[Trajectory], n: int
) -> list[NDArray[np.float32]]:
    """Step ``n`` of all rows, in their order."""
    batches: list[StepBatch | None] = [None] * executor.kv.groups
    for place, row in zip(where, rows, strict=True):
        batch = batches[place.group] or StepBatch(step_id=n, kind="decode", rows=[])
        past = len(row.prompt) + n
        batch.rows.append(
            RowStep(row=place.row, tokens=[row.tokens[n]], past_len=past, new_len=1, sample=False)
        )
        batches[place.group] = batch
    logits = [None if found is None else _last(found) for found in executor.forwards(batches)]
    return [own[place.row] for place in where if (own := logits[place.group]) is not None]


def case_result(
    lowering: str, case: str, got: list[NDArray[np.float32]], want: list[NDArray[np.float32]]
) -> CaseResult:
    """Of logits f32[V] each, in the same order."""
    ours, theirs = np.stack(got), np.stack(want)
    # numpy's max keeps a NaN, which then is no pass; Python's loses it
    return CaseResult(
        lowering=lowering,
        case=case,
        positions=len(ours),
        error=float(np.abs(ours - theirs).max()),
        scale=float(np.abs(theirs).max()),
        flips=int((ours.argmax(-1) != theirs.argmax(-1)).sum()),
    )


def compare(
    executor: Executor, lowering: str, rows: list[Trajectory], chunk: int, progress: Progress
) -> list[CaseResult]:
    """All cases of one executor. Every row decodes the reference's own tokens, so that one flip stays one flip."""
    steps = len(rows[0].tokens) - 1
    where = places(len(rows), executor.kv.groups)
    first = [r.logits[0] for r in rows]
    with progress.stage(
        f"{lowering}: prefill, chunked prefill, {steps} decode steps", 2 * len(rows) + steps
    ) as stage:
        results = []
        for case, size in (("chunked prefill", max(1, chunk // 3)), ("prefill", chunk)):
            got = []
            for index, row in enumerate(rows):
                got.append(_prefill(executor, where[index], row.prompt, size))
                stage.advance()
            results.append(case_result(lowering, case, got, first))
        decoded: list[NDArray[np.float32]] = []
        for n in range(steps):
            decoded += _decode(executor, where, rows, n)
            stage.advance()
        want = [r.logits[n + 1] for n in range(steps) for r in rows]
        results.append(case_result(lowering, f"decode, {len(rows)} ragged rows", decoded, want))
    return results


def verify_bundle(
    bundle: Path,
    manifest: Manifest,
    reference: Reference,
    lowerings: list[str],
    steps: int,
    rows: int,
    progress: Progress,
    *,
    trajectories_to: list[Trajectory] | None = None,
    provider: str = "cpu",
) -> list[CaseResult]:
    """Every lowering of a bundle against the reference, in this process (ranks in lockstep).

    ``steps`` is below the bundle's context and ``rows`` within its limit. ``trajectories_to`` is given what the
    reference answered. ``provider``: "cpu", or "cuda" for a GPU for each rank.
    """
    from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
    from mm2c_runtime.executors.provider import open_devices

    limits = manifest.limits
    chunk = min(limits.prefill_chunk, 48)  # crosses chunk borders with short prompts
    some = prompts(manifest.model.vocab, limits.context, chunk, rows, steps)
    expected = trajectories(reference, some, steps, progress)
    if trajectories_to is not None:
        trajectories_to += expected
    results = []
    for lowering in lowerings:
        executor = OnnxRuntimeExecutor(
            bundle,
            manifest,
            lowering=lowering,
            checkpoint=reference.folder,
            devices=open_devices(len(manifest.lowerings[lowering].ranks)) if provider == "cuda" else None,
            kv_tokens=rows * limits.context,
        )
        try:
            results += compare(executor, lowering, expected, chunk, progress)
        finally:
            executor.close()
    return results
