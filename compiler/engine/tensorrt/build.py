"""Plans from graphs: out of the cache, or built by workers, two at a time where the machine has room for them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm2c.bundle.cache import StageCache, cache_root, key_of
from mm2c.bundle.checksums import sha256_of
from mm2c.engine.select import find_gpu
from mm2c.engine.tensorrt.failures import failure
from mm2c.engine.tensorrt.jobs import BuiltPlan, PlanJob, plan_jobs, plan_path
from mm2c.engine.tensorrt.library import Library
from mm2c.engine.tensorrt.processes import Ended, Pool, worker_memory
from mm2c.engine.tensorrt.settings import described
from mm2c.progress import Progress, Quiet
from mm2c_runtime.manifest_tensorrt import TensorRTProgram

STAGE = "plan"  # of the cache
FORMAT = 1  # of a cached plan and what is told of it
PLAN, FACTS = "plan", "facts.json"  # in a cache entry
WHOLE = 100  # steps of the progress of one plan


def build_plans(
    jobs: Sequence[PlanJob],
    library: Library,
    *,
    cache: StageCache | None = None,
    progress: Progress | None = None,
    machine: str = "",
    workers: int = 0,
) -> list[BuiltPlan]:
    """Build every job's plan, or take it from ``cache``; in the jobs' order.

    ``machine``: the GPU and driver that plans without a target are built for, part of their key. ``workers``: at
    once; 0: as many as cores and memory allow, and one where the library measures on a GPU.

    Raises:
        UserError: a graph that the library refuses, a target that it does not have, a full disk, a worker that was
            killed or crashed. Plans that were finished before stay; none is ever half written.
    """
    found: dict[int, BuiltPlan] = {}
    progress = progress or Quiet()
    kept = cache or StageCache(cache_root(), enabled=False)
    keys = [_key(job, library, machine) for job in jobs]
    title = f"Building {len(jobs)} plan{'s' * (len(jobs) != 1)} with {library.name}"
    with progress.stage(title, WHOLE * len(jobs)) as bar:
        for index, job in enumerate(jobs):
            if (plan := _fetched(job, kept, keys[index])) is not None:
                found[index] = plan
                bar.advance(WHOLE)
        left = [index for index in range(len(jobs)) if index not in found]
        left.sort(key=lambda index: -jobs[index].spec.layers)  # the longest first
        shown = dict.fromkeys(left, 0)

        def advanced(at: int, percent: int) -> None:
            index = left[at]
            bar.advance(percent - shown[index])
            shown[index] = percent

        def ended(at: int, result: Ended) -> None:
            index = left[at]
            found[index] = _finished(jobs[index], library, result)
            advanced(at, WHOLE)
            _store(jobs[index], kept, keys[index], found[index])

        if left:
            memory = worker_memory(max(jobs[index].spec.layers for index in left))
            pool = Pool(workers or (1 if library.engine == "tensorrt" else 0))
            tasks = [_task(jobs[index], library) for index in left]
            try:
                pool.run(tasks, memory, advanced, ended)
            finally:
                for task in tasks:  # of a worker that had no time to remove it
                    with suppress(OSError):
                        os.unlink(task["part"])
    return [found[index] for index in range(len(jobs))]


def build_program(
    program: TensorRTProgram,
    folder: Path,
    library: Library,
    target: tuple[str, ...],
    cache: StageCache,
    progress: Progress,
    *,
    context: int = 0,
) -> tuple[TensorRTProgram, bool]:
    """Every plan of ``program``, whose graphs lie under ``folder``, beside its graph. Returns the program with the
    plans' paths, their scratch memory, the library's version and the target filled in, and whether any plan was
    built, not found in the cache.

    ``target`` empty: the GPU of this machine. ``context``: tokens that a row can hold; a paged cache needs it.

    Raises:
        UserError: as ``build_plans``.
    """
    machine = ""
    if not target:
        gpu = find_gpu()
        target = (gpu.capability,) if gpu else ()
        machine = f"{gpu.name} {gpu.capability}" if gpu else ""
    plugins = folder / program.plugins.library if program.plugins else None
    jobs = plan_jobs(program, folder, target, context=context, plugins=plugins)
    built = build_plans(jobs, library, cache=cache, progress=progress, machine=machine)
    plans = [
        spec.model_copy(update={"plan": plan_path(spec), "scratch": plan.scratch})
        for spec, plan in zip(program.plans, built, strict=True)
    ]
    update = {"version": library.version, "target": list(target), "plans": plans}
    return program.model_copy(update=update), not all(plan.cached for plan in built)


def _task(job: PlanJob, library: Library) -> dict[str, Any]:
    """What a worker is told."""
    timing = cache_root() / "tensorrt" / f"timing-{library.version}.cache"
    return {
        "engine": library.engine,
        "module": library.module,
        "graph": str(job.graph.absolute()),
        "plan": str(job.plan.absolute()),
        "part": str(job.plan.absolute().with_name(f".{job.plan.name}-{os.getpid()}.part")),
        "profiles": job.profiles(),
        "tensors": [tensor.model_dump() for tensor in job.spec.tensors],
        "target": list(job.target),
        "plugins": str(job.plugins.absolute()) if job.plugins else "",
        "timing_cache": str(timing) if library.engine == "tensorrt" else "",
    }


def _key(job: PlanJob, library: Library, machine: str) -> str:
    return key_of(
        {
            "format": FORMAT,
            "graph": hashlib.sha256(job.graph.read_bytes()).hexdigest(),
            "profiles": job.profiles(),
            "target": job.target,
            "machine": machine,
            "library": asdict(library),
            "settings": described(library.engine),
            "plugins": sha256_of(job.plugins) if job.plugins else "",
        }
    )


def _finished(job: PlanJob, library: Library, result: Ended) -> BuiltPlan:
    message = result.message or {}
    if result.status == 0 and "done" in message and job.plan.is_file():
        return BuiltPlan.of(job.name, message["done"], cached=False)
    raise failure(job, library, result)


def _fetched(job: PlanJob, cache: StageCache, key: str) -> BuiltPlan | None:
    """The plan out of the cache, in its place."""
    with tempfile.TemporaryDirectory(prefix=f".{job.plan.name}-", dir=job.plan.parent) as folder:
        there = Path(folder)
        if cache.fetch(STAGE, key, there) is None:
            return None
        try:
            plan = BuiltPlan.of(job.name, json.loads((there / FACTS).read_text("utf-8")), cached=True)
            os.replace(there / PLAN, job.plan)
        except (OSError, KeyError, TypeError, ValueError, AttributeError):
            return None
        return plan


def _store(job: PlanJob, cache: StageCache, key: str, plan: BuiltPlan) -> None:
    with (
        suppress(OSError),
        tempfile.TemporaryDirectory(prefix=f".{job.plan.name}-", dir=job.plan.parent) as folder,
    ):
        there = Path(folder)
        (there / FACTS).write_text(json.dumps(asdict(plan)), encoding="utf-8")
        os.symlink(job.plan.absolute(), there / PLAN)
        cache.store(STAGE, key, there, [PLAN, FACTS])
