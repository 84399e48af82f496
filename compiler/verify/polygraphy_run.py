"""TensorRT plans against ONNX Runtime on a machine with a GPU, through Polygraphy's runners and its comparator."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm2c.bundle.polygraphy_files import LEAST_SNR, comparisons
from mm2c.bundle.polygraphy_inputs import needs_own_build
from mm2c.engine.select import find_gpu
from mm2c.errors import UserError
from mm2c.progress import Progress
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.plan_step import Step, choose

if TYPE_CHECKING:
    from mm2c.engine.tensorrt.library import Library

RTX_VARIABLE = "POLYGRAPHY_USE_TENSORRT_RTX"  # read once, when Polygraphy is imported
Compare = Callable[[Step, Any, bool], dict[str, float]]


@dataclass(frozen=True)
class PlanComparison:
    """One plan with one profile, run by ``rank`` from ``first_layer`` on. ``snr``: of each output, in dB, infinite
    where both are equal; ``own_build``: not the bundle's plan but its graph without collectives was run."""

    plan: str
    profile: str
    rank: int
    first_layer: int
    rows: int
    tokens: int
    own_build: bool
    snr: dict[str, float]

    @property
    def worst(self) -> float:
        """NaN where an output is."""
        found = list(self.snr.values())
        return next((value for value in found if value != value), min(found, default=float("nan")))

    @property
    def passed(self) -> bool:
        return self.worst >= LEAST_SNR

    def as_json(self) -> dict[str, Any]:
        """What JSON cannot hold becomes null: infinity, of equal outputs, and NaN."""
        snr = {name: value if abs(value) < float("inf") else None for name, value in self.snr.items()}
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "snr": snr, "least_snr": LEAST_SNR, "passed": self.passed}


@dataclass(frozen=True)
class PolygraphyOutcome:
    """``library``: that ran the plans, with its version."""

    library: str
    results: list[PlanComparison]

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.passed for result in self.results)

    def as_json(self) -> dict[str, Any]:
        results = [result.as_json() for result in self.results]
        return {"library": self.library, "passed": self.passed, "results": results}


def why_not(manifest: Manifest) -> str:
    """Why plans of this bundle cannot be run on this machine; nothing where they can."""
    from mm2c.engine.tensorrt.library import find_library

    program = manifest.tensorrt
    if program is None:
        return "the bundle has no TensorRT plans"
    gpu = find_gpu()
    if gpu is None:
        return "there is no GPU here"
    if program.target and gpu.capability not in program.target:
        return f"the plans are for compute capability {', '.join(program.target)}, {gpu.name} has {gpu.capability}"
    try:
        library = find_library(manifest.engine)
    except UserError as error:
        return error.what
    if program.version and program.version != library.version:
        return f"the plans were built by version {program.version}, here is {library.name}"
    return "" if find_spec("polygraphy") else "Polygraphy is not installed"


def compare_plans(
    bundle: Path,
    manifest: Manifest,
    progress: Progress,
    *,
    rank: int | None = None,
    compare: Compare | None = None,
) -> PolygraphyOutcome:
    """Every plan with each of its profiles once, on the same step, weights of the bundle, other inputs random.

    A plan whose ranks speak to each other cannot run alone: its graph is built without collectives, and both sides
    compute what one rank has. The same goes for plans that are still to be built. ``rank``: whose weights (None: the
    first that runs a plan); ``compare``: what runs both, for tests.

    Raises:
        UserError: a library is missing, or Polygraphy was imported for the other one.
        ValueError: ``rank`` is none of the bundle's.
    """
    from mm2c.engine.tensorrt.library import find_library

    program = manifest.tensorrt
    if program is None:
        raise ValueError("the bundle has no TensorRT plans")
    library = find_library(manifest.engine)
    run = compare or _comparer(library)
    todo = comparisons(program)
    results = []
    with progress.stage("TensorRT and ONNX Runtime through Polygraphy", len(todo)) as stage:
        for plan, profile, first, layer in todo:
            own = first if rank is None else rank
            step = choose(bundle, plan, profile=profile, rank=own, first_layer=layer)
            apart = needs_own_build(program) or step.plan.plan is None
            snr = run(step, library.load(), apart)
            results.append(
                PlanComparison(plan, step.profile.name, own, layer, step.rows, step.tokens, apart, snr)
            )
            stage.advance()
    return PolygraphyOutcome(library.name, results)


def _comparer(library: Library) -> Compare:
    """Polygraphy decides when it is imported which TensorRT it speaks to."""
    wanted = library.engine == "tensorrt-rtx"
    os.environ[RTX_VARIABLE] = str(int(wanted))
    try:
        from polygraphy import config
    except ModuleNotFoundError:
        raise UserError(
            "Polygraphy is not installed",
            where="the Python environment of mm2c",
            remedy="pip install '.[verify]' in mm2c's folder",
        ) from None
    if bool(config.USE_TENSORRT_RTX) != wanted:
        raise UserError(
            f"Polygraphy was imported in this process for another library than {library.name}",
            where="this process",
            remedy="compare bundles of different engines in processes of their own",
        )
    from mm2c.verify.polygraphy_runners import compare_step

    return compare_step


def summary(outcome: PolygraphyOutcome) -> str:
    """One line: how many, and the worst."""
    failed: Sequence[PlanComparison] = [result for result in outcome.results if not result.passed]
    worst = min(outcome.results, key=lambda result: result.worst, default=None)
    verdict = (
        f"{len(failed)} of {len(outcome.results)} FAILED" if failed else f"all {len(outcome.results)} passed"
    )
    where = f"; worst {worst.plan} ({worst.profile}): {worst.worst:.1f} dB" if worst else ""
    return f"{outcome.library} against ONNX Runtime through Polygraphy: {verdict}{where}, {LEAST_SNR} dB are asked for"
