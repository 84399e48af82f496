"""What a plan is built from, what became of it, and the ranges of its inputs' sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm2c_runtime.manifest_tensorrt import Plan, PlanTensor, Profile, Range, TensorRTProgram

VOLUME = 2**31 - 1  # elements that a tensor may have
Shapes = dict[
    str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
]  # smallest, optimal, largest by input


@dataclass(frozen=True)
class PlanJob:
    """``graph`` is read, ``plan`` written. ``spec``: the manifest's record of the plan. ``target``: compute
    capabilities ("12.0"); empty: of the GPU of this machine. ``plugins``: the library that has the graph's plugins.
    ``ranges``: of the symbols of paged plans, which the profiles do not give (see ``page_ranges``)."""

    name: str
    graph: Path
    plan: Path
    spec: Plan
    target: tuple[str, ...]
    plugins: Path | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def profiles(self) -> list[Shapes]:
        """The ranges of every input of variable size, for each of the plan's profiles in order."""
        return [_shapes(self.spec.tensors, profile, self.ranges) for profile in self.spec.profiles]


@dataclass(frozen=True)
class BuiltPlan:
    """``bytes``: size of the plan; ``scratch``: device memory that it needs while it runs, in bytes; ``seconds`` and
    ``peak``: wall time and resident memory of the process that built it, also where the plan came from the cache;
    ``layers`` and ``precisions``: of the network, by kind and by dtype of the first output; ``log``: what the library
    warned of."""

    name: str
    bytes: int
    scratch: int
    seconds: float
    peak: int
    cached: bool
    layers: dict[str, int]
    precisions: dict[str, int]
    log: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, facts: Mapping[str, Any], *, cached: bool) -> BuiltPlan:
        """From what the worker told. KeyError, TypeError or ValueError where that is not whole."""
        return cls(
            name=name,
            bytes=int(facts["bytes"]),
            scratch=int(facts["scratch"]),
            seconds=float(facts["seconds"]),
            peak=int(facts["peak"]),
            cached=cached,
            layers={str(kind): int(count) for kind, count in facts["layers"].items()},
            precisions={str(dtype): int(count) for dtype, count in facts["precisions"].items()},
            log=tuple(str(line) for line in facts["log"]),
        )


def plan_jobs(
    program: TensorRTProgram,
    folder: Path,
    target: tuple[str, ...],
    *,
    context: int,
    plugins: Path | None = None,
) -> list[PlanJob]:
    """A job for every plan of ``program``, whose graphs lie under ``folder``; each plan goes beside its graph.

    ``context``: tokens that a row can hold.
    """
    ranges = page_ranges(program, context)
    return [
        PlanJob(
            name=spec.name,
            graph=folder / spec.graph,
            plan=folder / plan_path(spec),
            spec=spec,
            target=target,
            plugins=plugins,
            ranges=ranges,
        )
        for spec in program.plans
    ]


def plan_path(spec: Plan) -> str:
    """Where a plan lies in the bundle: beside its graph."""
    return spec.plan or f"{spec.graph.removesuffix('.onnx')}.plan"


def page_ranges(program: TensorRTProgram, context: int) -> dict[str, Range]:
    """The ranges of "pages" and "pages_of_row"; none where the cache has rows.

    How many pages there are is known when the GPU's free memory is: as many as a tensor may hold are allowed.
    """
    kv = program.kv
    if not kv.page:
        return {}
    if context < 1:
        raise ValueError("a paged cache needs the context's length")
    of_row = -(-context // kv.page)
    most = VOLUME // (kv.page * kv.kv_heads * kv.head_dim)
    rows = max(profile.batch[2] for plan in program.plans for profile in plan.profiles)
    return {"pages_of_row": (1, of_row, of_row), "pages": (1, min(of_row * rows, most), most)}


def _shapes(tensors: list[PlanTensor], profile: Profile, ranges: Mapping[str, Range]) -> Shapes:
    known: dict[str, Range] = {**ranges, "batch": profile.batch, "seq": profile.seq}
    shapes: Shapes = {}
    for tensor in tensors:
        if tensor.mode == "input" and any(isinstance(size, str) for size in tensor.shape):
            at = [tuple(_size(size, known, which) for size in tensor.shape) for which in range(3)]
            shapes[tensor.name] = (at[0], at[1], at[2])
    return shapes


def _size(size: int | str, known: Mapping[str, Range], which: int) -> int:
    return known[size][which] if isinstance(size, str) else size
