"""`mm2c verify` as a function: opens bundle and checkpoint, refuses a mismatch, compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c.errors import UserError
from mm2c.progress import Progress
from mm2c.verify.logits import TOLERANCE, CaseResult
from mm2c_runtime.manifest_file import read_bundle


@dataclass(frozen=True)
class Outcome:
    bundle: str
    checkpoint: str
    results: list[CaseResult]

    @property
    def passed(self) -> bool:
        return all(r.passed for r in self.results)

    def as_json(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "checkpoint": self.checkpoint,
            "tolerance": TOLERANCE,
            "passed": self.passed,
            "results": [r.as_json() for r in self.results],
        }


def verify_checkpoint(
    bundle: Path, against: str | None, lowering: str, steps: int, rows: int, progress: Progress
) -> Outcome:
    """Raises BundleError where the bundle is altered, UserError where it is not of this checkpoint."""
    from mm2c.checkpoint import Checkpoint, locate

    manifest = read_bundle(bundle)
    if manifest.checkpoint is None:
        raise UserError(
            "the bundle was built from config.json alone: it has no weights to verify",
            where=str(bundle),
            remedy="build it from a checkpoint, without --config-only",
        )
    known = list(manifest.lowerings)
    if lowering != "all" and lowering not in known:
        raise UserError(
            f"the bundle has no lowering '{lowering}'",
            where=str(bundle),
            remedy=f"one of: all, {', '.join(known)}",
        )
    found = locate(
        against or manifest.checkpoint.source,
        revision=manifest.checkpoint.revision if against is None else None,
    )
    checkpoint = Checkpoint.open(found.folder)
    if checkpoint.identity() != manifest.checkpoint.identity:
        raise UserError(
            "the bundle was built from another checkpoint",
            where=f"{bundle} (built from {manifest.checkpoint.source}), {found.folder}",
            remedy="pass the checkpoint it was built from with --against, or build again",
        )

    from mm2c.verify.logits import verify_bundle
    from mm2c.verify.reference import Reference

    with progress.stage("loading the reference"):
        reference = Reference(checkpoint)
    results = verify_bundle(
        bundle, manifest, reference, known if lowering == "all" else [lowering], steps, rows, progress
    )
    return Outcome(str(bundle), str(found.folder), results)
