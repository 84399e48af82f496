"""`mm2c verify` as a function: opens bundle and checkpoint, refuses a mismatch, compares."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm2c.errors import UserError
from mm2c.progress import Progress
from mm2c.verify.logits import TOLERANCE, CaseResult, Trajectory
from mm2c_runtime.executors.provider import ProviderName, asked_provider, provider_lowering
from mm2c_runtime.manifest import CheckpointInfo, Limits, Manifest
from mm2c_runtime.manifest_file import read_bundle
from mm2c_runtime.weights.checkpoint import VARIABLE

if TYPE_CHECKING:
    from mm2c.checkpoint.locate import Located


@dataclass(frozen=True)
class Outcome:
    """``steps``: decode steps that were compared, fewer than asked for where the bundle's context is short."""

    bundle: str
    checkpoint: str
    steps: int
    results: list[CaseResult]

    @property
    def passed(self) -> bool:
        return all(r.passed for r in self.results)

    def as_json(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "checkpoint": self.checkpoint,
            "steps": self.steps,
            "tolerance": TOLERANCE,
            "passed": self.passed,
            "results": [r.as_json() for r in self.results],
        }


def verify_checkpoint(
    bundle: Path,
    against: str | None,
    lowering: str,
    steps: int,
    rows: int,
    progress: Progress,
    *,
    write: bool = False,
    provider: str | None = None,
) -> Outcome:
    """Compare every case; ``steps`` and ``rows`` are cut to what the bundle holds, with a note. ``write``: keep golden
    vectors of the reference in the bundle, where it passes. ``provider``: what ONNX Runtime runs on, where it is not
    ``$MM2C_PROVIDER`` or the CPU.

    Raises:
        BundleError: the bundle is altered, or the provider cannot run it here.
        UserError: it is not of this checkpoint, has no weights or no such lowering, is for another engine than
            ONNX Runtime, has a context of one token, or cannot be written to.
    """
    from mm2c.checkpoint import Checkpoint
    from mm2c.verify.bundle_report import check_writable
    from mm2c.verify.same import check_same

    manifest = read_bundle(bundle)
    source = refuse_bare(manifest, bundle)
    if manifest.engine != "onnxruntime":
        raise UserError(
            f"whole models are compared on ONNX Runtime: a bundle for the {manifest.engine} engine is not",
            where=str(bundle),
            remedy="verify it with --streamed, layer by layer",
        )
    runs_on = asked_provider(provider, engine=manifest.engine)
    lowerings = wanted_lowerings(manifest, bundle, lowering, runs_on)
    steps, rows = fitting(manifest.limits, bundle, steps, rows, progress)
    if write:
        check_writable(bundle)
    found = located(against, source, progress)
    with Checkpoint.open(found.folder) as checkpoint:
        check_same(manifest, bundle, checkpoint)

        from mm2c.verify.logits import verify_bundle
        from mm2c.verify.reference import Reference

        with progress.stage("loading the reference"):
            reference = Reference(checkpoint, manifest.weight_format)
        kept: list[Trajectory] = []
        results = verify_bundle(
            bundle,
            manifest,
            reference,
            lowerings,
            steps,
            rows,
            progress,
            trajectories_to=kept,
            provider=runs_on,
        )
        outcome = Outcome(str(bundle), str(found.folder), steps, results)
        if write and outcome.passed:
            from mm2c.verify.run_streamed import write_goldens
            from mm2c.verify.whole_goldens import golden_of

            report = {"kind": "whole model", "results": [result.as_json() for result in results]}
            write_goldens(bundle, golden_of(reference, kept, manifest), report)
    return outcome


def refuse_bare(manifest: Manifest, bundle: Path) -> CheckpointInfo:
    """Where the bundle's weights come from; UserError for a bundle that has none."""
    if manifest.checkpoint is None:
        raise UserError(
            "the bundle was built from config.json alone: it has no weights to verify",
            where=str(bundle),
            remedy="build it from a checkpoint, without --config-only",
        )
    return manifest.checkpoint


def wanted_lowerings(
    manifest: Manifest, bundle: Path, lowering: str, provider: ProviderName = "cpu"
) -> list[str]:
    """All of them that run on ``provider``, or the one asked for. UserError where there is no such one, BundleError
    where it does not run there."""
    known = list(manifest.lowerings)
    if provider == "cuda":
        lowering = provider_lowering(provider, None if lowering == "all" else lowering)
    if lowering == "all":
        return known
    if lowering not in known:
        raise UserError(
            f"the bundle has no lowering '{lowering}'",
            where=str(bundle),
            remedy=f"one of: all, {', '.join(known)}",
        )
    return [lowering]


def fitting(limits: Limits, bundle: Path, steps: int, rows: int, progress: Progress) -> tuple[int, int]:
    """Decode steps and rows that the bundle can hold: a prompt token and the steps share a row's context.

    Raises:
        UserError: a row holds one token, so that nothing can be decoded.
    """
    if limits.context < 2:
        raise UserError(
            f"the bundle's context of {limits.context} token leaves no room for a decode step",
            where=str(bundle),
            remedy="build it with --context 2 or more",
        )
    if steps >= limits.context:
        steps = limits.context - 1
        progress.note(
            f"a row of this bundle holds {limits.context} tokens: {steps} decode steps are compared"
        )
    if rows > limits.max_rows:
        rows = limits.max_rows
        progress.note(f"this bundle decodes at most {rows} rows together: {rows} are compared")
    return steps, rows


def located(against: str | None, source: CheckpointInfo, progress: Progress) -> Located:
    """``against``, else ``$MM2C_CHECKPOINT_FOLDER``, else where the bundle was built from. UserError where it is not
    there."""
    from mm2c.checkpoint import locate

    if against is not None:
        return locate(against, progress=progress)
    moved = os.environ.get(VARIABLE)
    if moved:
        named, revision = str(Path(moved).expanduser().absolute()), None  # a folder, whatever it looks like
    else:
        named, revision = source.source, source.revision
        if revision is None and source.folder:  # the source may be relative to where the build ran
            named = source.folder
    try:
        return locate(named, revision=revision, progress=progress)
    except UserError as error:
        raise UserError(
            f"the checkpoint that the bundle was built from is not at hand: {error.what}",
            where=f"${VARIABLE} = {moved}" if moved else error.where,
            remedy=f"name it with --against, or say where it is now: {VARIABLE}=FOLDER",
        ) from error
