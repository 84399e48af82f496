"""`mm2c verify` of TensorRT bundles as a function: their graphs as TensorRT's parser understands them, evaluated on the
CPU, against ONNX Runtime and the unmodified transformers module. Needs no GPU, and no plan that is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm2c.errors import UserError
from mm2c.progress import Progress
from mm2c.verify.bundle_report import check_writable
from mm2c.verify.fault import faulty_tensors
from mm2c.verify.logits import TOLERANCE, CaseResult
from mm2c.verify.run import fitting, located, refuse_bare
from mm2c.verify.tensor_source import Sources, TensorSource
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_file import read_bundle
from mm2c_runtime.memory import available_bytes

if TYPE_CHECKING:
    from mm2c.checkpoint import Checkpoint
    from mm2c.engine.tensorrt.library import Library
    from mm2c.verify.network_answers import Answers
    from mm2c.verify.network_chain import Chain
    from mm2c.verify.network_compare import StageResult
    from mm2c.verify.polygraphy_run import PolygraphyOutcome

ENGINES = ("tensorrt-rtx", "tensorrt")
PARSER = "tensorrt-rtx"  # its builder and parser run without a GPU, and know the graphs of both


@dataclass(frozen=True)
class NetworkOutcome:
    """``library``: whose parser made the networks; ``networks`` and ``layers``: how many there are, and their layers
    together. ``stages``: networks against ONNX Runtime; ``results``: both against transformers. ``tensors``: of a
    bundle whose logits are wrong, the stored tensors that are not what the checkpoint makes them. ``plans``: the
    built plans against ONNX Runtime, where this machine can run them; ``not_run`` says why not."""

    bundle: str
    checkpoint: str
    engine: str
    library: str
    networks: int
    layers: int
    stages: list[StageResult]
    results: list[CaseResult]
    tensors: tuple[str, ...] = ()
    plans: PolygraphyOutcome | None = None
    not_run: str = ""

    @property
    def passed(self) -> bool:
        compared = all(r.passed for r in self.stages) and all(r.passed for r in self.results)
        return compared and (self.plans is None or self.plans.passed)

    def as_json(self) -> dict[str, Any]:
        from mm2c.verify.network_compare import STEP, STEPS, WIDE

        return {
            "bundle": self.bundle,
            "checkpoint": self.checkpoint,
            "engine": self.engine,
            "library": self.library,
            "networks": self.networks,
            "layers": self.layers,
            "tolerances": {
                "wide": WIDE,
                "bf16_steps_of_a_layer": STEPS,
                "bf16_step": STEP,
                "logits": TOLERANCE,
            },
            "passed": self.passed,
            "stages": [r.as_json() for r in self.stages],
            "results": [r.as_json() for r in self.results],
            "tensors": list(self.tensors),
            "plans": self.plans.as_json() if self.plans else None,
            "plans_not_run": self.not_run,
        }


def verify_network(
    bundle: Path,
    against: str | None,
    progress: Progress,
    *,
    steps: int = 32,
    rows: int = 6,
    streamed_tokens: int | None = None,
    write: bool = False,
    threads: int = 1,
) -> NetworkOutcome:
    """Compare every stage of every rank over prefill, chunked prefill and ragged decode steps. ``streamed_tokens``: the
    reference is computed layer by layer, for so many tokens, where the model does not fit into memory. ``write``: keep
    golden vectors and the figures in the bundle, where it passes.

    Raises:
        BundleError: the bundle is altered, or a plan's graph is not what the manifest says or cannot be evaluated.
        UserError: it is not of this checkpoint, has no weights, is for another engine, its context is too long for the
            memory here, TensorRT-RTX is not installed, or it cannot be written to.
    """
    from mm2c.checkpoint import Checkpoint
    from mm2c.engine.tensorrt.library import find_library
    from mm2c.verify.polygraphy_run import compare_plans, why_not
    from mm2c.verify.same import check_same

    manifest = read_bundle(bundle)
    source = refuse_bare(manifest, bundle)
    if manifest.tensorrt is None:
        raise UserError(
            f"networks are replayed of TensorRT's plans: a bundle for the {manifest.engine} engine has none",
            where=str(bundle),
            remedy=f"--engine {manifest.engine}, or leave --engine out",
        )
    library = find_library(PARSER)
    steps, rows = fitting(manifest.limits, bundle, steps, rows, progress)
    rows = _fitting_memory(manifest, bundle, rows, progress)
    if write:
        check_writable(bundle)
    found = located(against, source, progress)
    with Checkpoint.open(found.folder) as checkpoint:
        check_same(manifest, bundle, checkpoint)

        from mm2c.verify.network_answers import streamed_answers, whole_answers

        if streamed_tokens is None:
            answers = whole_answers(checkpoint, manifest, rows, steps, progress)
        else:
            answers = streamed_answers(checkpoint, manifest, rows, streamed_tokens, progress)
        weights = [bundle / rank.weights for rank in manifest.tensorrt.ranks]
        with Sources(weights, checkpoint) as sources:
            chain = _replayed(library, bundle, manifest, sources, answers, progress, threads)
            results = answers.compare(chain)
            tensors: tuple[str, ...] = ()
            if not all(result.passed for result in results):
                tensors = _faulty(weights, sources, checkpoint, manifest.model.layers)
    not_run = why_not(manifest)
    outcome = NetworkOutcome(
        str(bundle),
        str(found.folder),
        manifest.engine,
        library.name,
        chain.plans,
        chain.layers,
        chain.results,
        results,
        tensors,
        None if not_run else compare_plans(bundle, manifest, progress),
        not_run,
    )
    if write and outcome.passed:
        from mm2c.verify.run_streamed import write_goldens

        write_goldens(bundle, answers.golden, {"kind": "network replay", **_figures(outcome)})
    return outcome


def _figures(outcome: NetworkOutcome) -> dict[str, Any]:
    """What stays true where the bundle is copied to."""
    document = outcome.as_json()
    return {
        key: document[key] for key in ("library", "networks", "layers", "tolerances", "stages", "results")
    }


def _replayed(
    library: Library,
    bundle: Path,
    manifest: Manifest,
    sources: Sequence[TensorSource],
    answers: Answers,
    progress: Progress,
    threads: int,
) -> Chain:
    from mm2c.verify.network import ReplayError
    from mm2c.verify.network_chain import replay_plans

    try:
        return replay_plans(library.load(), bundle, manifest, sources, answers.cases, progress, threads)
    except ReplayError as error:
        raise BundleError(
            f"a network of the bundle cannot be evaluated, which proves nothing: {error}", where=str(bundle)
        ) from error


def _faulty(
    weights: Sequence[Path], sources: Sequence[TensorSource], checkpoint: Checkpoint, layers: int
) -> tuple[str, ...]:
    """Of the first part of the model that has such tensors."""
    for part in ("embedding", *map(str, range(layers)), "logits"):
        if found := faulty_tensors(weights, sources, checkpoint, part):
            return found
    return ()


def _fitting_memory(manifest: Manifest, bundle: Path, rows: int, progress: Progress) -> int:
    """Rows whose caches fit; a network's rows are as long as the context, whatever is in them."""
    program = manifest.tensorrt
    assert program is not None
    have = available_bytes()
    if program.kv.page or have is None:
        return rows
    depth = max(plan.layers for plan in program.plans)
    row = 2 * 4 * program.kv.kv_heads * program.kv.head_dim * manifest.limits.context * depth
    # of every rank: two chains; of a step's rows what both are fed, and what three evaluations make
    each = len(program.ranks) * row
    fits = int(0.8 * have) // (8 * each)
    if fits < 1:
        raise UserError(
            f"the caches of one row of {manifest.limits.context} tokens take {8 * each / 1e9:.0f} GB while a stage of "
            f"{depth} layers is compared, {have / 1e9:.0f} GB are free",
            where=str(bundle),
            remedy="verify on a machine with more memory, or a bundle with a smaller --context or --layers-per-plan",
        )
    if fits < rows:
        progress.note(f"{fits} rows are compared: the caches of more do not fit into memory")
    return min(rows, fits)
