"""`mm2c verify --streamed` and `--golden` as functions: open, refuse what does not fit, compare, write goldens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm2c.errors import UserError
from mm2c.progress import Progress
from mm2c.verify.bundle_report import add_reports, check_writable
from mm2c.verify.run import located, refuse_bare, wanted_lowerings
from mm2c.verify.script import make_script
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.provider import asked_provider
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_file import read_bundle, read_manifest
from mm2c_runtime.selfcheck_golden import GOLDEN, Golden, read_golden

if TYPE_CHECKING:
    from mm2c.verify.golden_file import GoldenWriter
    from mm2c.verify.streamed import Streamed
    from mm2c_runtime.selfcheck_run import Figure

TOKENS = 24
REPORT = "report/verify.json"


@dataclass(frozen=True)
class StreamedOutcome:
    """``golden``: whether the bundle has golden vectors of this comparison now."""

    bundle: str
    checkpoint: str
    streamed: Streamed
    golden: bool

    @property
    def passed(self) -> bool:
        return self.streamed.passed

    def as_json(self) -> dict[str, Any]:
        found = self.streamed
        return {
            "bundle": self.bundle,
            "checkpoint": self.checkpoint,
            "tokens": found.tokens,
            "experts": found.experts,
            "seconds": round(found.seconds, 2),
            "peak_rss_bytes": found.peak_rss,
            "passed": self.passed,
            "golden": self.golden,
            "results": [result.as_json() for result in found.results],
        }


def verify_layers(
    bundle: Path,
    against: str | None,
    lowering: str,
    progress: Progress,
    *,
    tokens: int = TOKENS,
    layers: str | None = None,
    write: bool = False,
) -> StreamedOutcome:
    """Compare layer by layer. ``layers``: "0,5-7", None for all; goldens are then written where ``write``.

    Raises:
        BundleError: the bundle is altered, or a program of it cannot be run.
        UserError: it is not of this checkpoint, has no weights, no such lowering or layer, or cannot be written to.
    """
    from mm2c.checkpoint import Checkpoint
    from mm2c.verify.golden_file import GoldenWriter
    from mm2c.verify.same import check_same

    manifest = read_bundle(bundle)
    source = refuse_bare(manifest, bundle)
    lowerings = wanted_lowerings(manifest, bundle, lowering) if manifest.cuda is None else []
    numbers = None if layers is None else parse_layers(layers, manifest.model.layers)
    if write and numbers is not None:
        write = False
        progress.note("some layers alone are compared: no golden vectors are written")
    if write:
        check_writable(bundle)
    found = located(against, source, progress)
    with Checkpoint.open(found.folder) as checkpoint:
        check_same(manifest, bundle, checkpoint)

        from mm2c.verify.streamed import verify_streamed

        limits = manifest.limits
        script = make_script(
            manifest.model.vocab,
            limits.context,
            limits.max_rows,
            limits.prefill_chunk,
            tokens,
            manifest.mapping.attention_dp,
        )
        golden = GoldenWriter(script, manifest) if write else None
        streamed = verify_streamed(
            bundle, manifest, checkpoint, lowerings, script, progress, layers=numbers, golden=golden
        )
    if golden and streamed.passed:
        write_goldens(
            bundle, golden, {"kind": "streamed", "results": [r.as_json() for r in streamed.results]}
        )
    return StreamedOutcome(str(bundle), str(found.folder), streamed, bool(golden) and streamed.passed)


def write_goldens(bundle: Path, golden: GoldenWriter, report: dict[str, Any]) -> None:
    """Put the golden vectors and ``report`` into the bundle. What is there already and says the same stays as it is:
    sums of floats may differ in their last bits from run to run."""
    vectors = golden.golden()
    if _says_the_same(bundle, vectors, report):
        return
    document = {**report, "reference": vectors.about}
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    add_reports(bundle, {GOLDEN: vectors.to_bytes(), REPORT: text.encode()})


def _says_the_same(bundle: Path, vectors: Golden, report: dict[str, Any]) -> bool:
    manifest = read_manifest(bundle)
    if GOLDEN not in manifest.files or REPORT not in manifest.files:
        return False
    try:
        known = read_golden(bundle)
        before = json.loads((bundle / REPORT).read_text(encoding="utf-8"))
    except (BundleError, OSError, ValueError):
        return False
    compared = [
        (one.get("kind"), len(one.get("results", [])), one.get("steps"), one.get("layers"))
        for one in (before, report)
    ]
    return known is not None and known.agrees(vectors) and compared[0] == compared[1]


def parse_layers(text: str, count: int) -> list[int]:
    """ "0,5-7" → [0, 5, 6, 7]. UserError for what is no layer of the model."""
    try:
        found: set[int] = set()
        for part in text.split(","):
            first, _, last = part.strip().partition("-")
            found |= set(range(int(first), int(last or first) + 1))
        if not found or min(found) < 0 or max(found) >= count:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--layers is '{text}', the model has layers 0 to {count - 1}",
            remedy="give numbers and ranges of layers, such as 0,5-7",
        ) from None
    return sorted(found)


@dataclass(frozen=True)
class GoldenOutcome:
    bundle: str
    runs: str
    figures: list[Figure]
    about: dict[str, Any]

    @property
    def passed(self) -> bool:
        return all(figure.passed for figure in self.figures)

    def as_json(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "engine": self.runs,
            "passed": self.passed,
            "reference": self.about,
            "results": [{"engine": self.runs, **figure.as_json()} for figure in self.figures],
        }


def compare_golden(
    bundle: Path, lowering: str, progress: Progress, *, ops: str = "", provider: str | None = None
) -> list[GoldenOutcome]:
    """The bundle's own engine against its golden vectors: one for each lowering of ONNX Runtime.

    Needs neither the checkpoint nor transformers. ``ops`` replaces the kernels of the cuda engine, for tests.
    ``provider``: what ONNX Runtime runs on, where it is not ``$MM2C_PROVIDER`` or the CPU.
    Raises BundleError where the bundle is altered or cannot run here, UserError where it has no golden vectors.
    """
    from mm2c_runtime.executors.load import load_executor
    from mm2c_runtime.selfcheck_run import run_golden

    manifest = read_bundle(bundle)
    refuse_bare(manifest, bundle)
    golden = read_golden(bundle)
    if golden is None:
        raise UserError(
            "the bundle has no golden vectors",
            where=str(bundle / GOLDEN),
            remedy="`mm2c verify` writes them, where the checkpoint and transformers are",
        )
    runs_on = asked_provider(provider, engine=manifest.engine)
    names: list[str] = [manifest.engine]
    if manifest.engine == "onnxruntime":
        names = wanted_lowerings(manifest, bundle, lowering, runs_on)
    outcomes = []
    for name in names:
        with progress.stage(f"{name}: golden rows"):
            executor = load_executor(
                bundle,
                manifest,
                lowering=name,
                threads=None,
                kv_tokens=_tokens(manifest),
                ops=ops,
                provider=runs_on,
            )
            try:
                figures = run_golden(executor, golden, engine=manifest.engine, layers=manifest.model.layers)
            finally:
                executor.close()
        outcomes.append(GoldenOutcome(str(bundle), name, figures, golden.about))
    return outcomes


def _tokens(manifest: Manifest) -> int | None:
    """A cache of a few rows is enough."""
    if manifest.engine != "cuda":
        return None
    return min(4096, manifest.limits.context * manifest.limits.max_rows)
