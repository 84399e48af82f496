"""What a worker's end means to the user: the cause, the plan, and what to do."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence

from mm2c.engine.tensorrt.jobs import PlanJob
from mm2c.engine.tensorrt.library import EXTRAS, Library
from mm2c.engine.tensorrt.processes import Ended
from mm2c.errors import UserError

MEMORY = ("OutOfMemory", "bad_alloc", "out of memory")
DATATYPES = "HW-specific datatypes"  # the library's words for a target that lacks a type of the graph
FEWER = "--layers-per-plan with fewer layers makes plans that take less"


def failure(job: PlanJob, library: Library, result: Ended) -> Exception:
    """The error of a worker that built no plan: the user's, or a RuntimeError for a defect of the worker."""
    message = result.message or {}
    if result.status < 0:
        return _killed(job, library, result)
    if "refused" not in message:
        return RuntimeError(f"the worker of plan {job.name} ended with status {result.status}:\n{result.log}")
    kind = str(message["refused"])
    text = "; ".join(str(problem) for problem in message["problems"]) or result.log or "it said nothing more"
    if kind == "disk":
        return _full(job, text)
    if kind == "plugins":
        return UserError(f"plan {job.name} cannot have its plugins: {text}", where=str(job.plugins))
    if kind == "memory" or any(part in text for part in MEMORY):
        return UserError(
            f"{library.name} has not enough memory for plan {job.name}: {text}",
            where=str(job.graph),
            remedy=FEWER,
        )
    if kind == "target" or DATATYPES in text:
        return UserError(
            f"{library.name} does not build plan {job.name} for {_shown(job.target)}: {text}",
            where="--target",
            remedy="a GPU that has the graph's data types: FP8 needs compute capability 8.9 or 12.0",
        )
    if kind in ("graph", "table"):
        verb = "does not take the graph of" if kind == "graph" else "understands another graph for"
        return UserError(
            f"{library.name} {verb} plan {job.name}: {text}",
            where=str(job.graph),
            remedy="a defect of mm2c, or a version of the library that it was not tested with: "
            f"pip install '.[{EXTRAS[library.engine]}]' installs the tested one",
        )
    return UserError(
        f"{library.name} did not build plan {job.name}: {text}",
        where=str(job.graph),
        remedy=f"the library's own words tell the cause; {FEWER}",
    )


def _killed(job: PlanJob, library: Library, result: Ended) -> UserError:
    try:
        name = signal.Signals(-result.status).name
    except ValueError:
        name = f"signal {-result.status}"
    log = "\n".join(f"    {line}" for line in result.log.splitlines())
    told = f" (phase: {result.phase})" + (f"; the last that it said:\n{log}" if log else "")
    if -result.status in (signal.SIGKILL, signal.SIGTERM):
        return UserError(
            f"the process that built plan {job.name} was killed ({name}) with {result.peak / 2**20:.0f} MiB in "
            f"memory{told}",
            where=str(job.graph),
            remedy="if nobody did, the machine ran out of memory (its log, dmesg, says so): end other programs, or "
            + FEWER,
        )
    return UserError(
        f"{library.name} crashed ({name}) while it built plan {job.name} of {job.spec.layers} layers{told}",
        where=str(job.graph),
        remedy="long graphs are known to crash it: --layers-per-plan with fewer layers",
    )


def _full(job: PlanJob, text: str) -> UserError:
    free = shutil.disk_usage(job.plan.parent).free
    return UserError(
        f"the disk is full ({free / 2**20:.0f} MiB left): plan {job.name} could not be written ({text})",
        where=str(job.plan.parent),
        remedy="free space, or write to another disk with -o",
    )


def _shown(target: Sequence[str]) -> str:
    return "compute capability " + ", ".join(target) if target else "this machine's GPU"
