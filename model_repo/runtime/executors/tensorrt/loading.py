"""From a bundle's files to a rank that can run steps: library, plans, weights and contexts, each checked first."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.aligned import ALIGNMENT
from mm2c_runtime.executors.cuda.collectives import Collectives
from mm2c_runtime.executors.cuda.loading import rank_weights
from mm2c_runtime.executors.cuda.rank_model import LoadedRank
from mm2c_runtime.executors.tensorrt.checks import (
    REBUILD,
    check_files,
    check_target,
    checked_rank,
    weights_of,
)
from mm2c_runtime.executors.tensorrt.facts import PlanFacts, facts_of
from mm2c_runtime.executors.tensorrt.kernel_cache import KernelCache, kernel_cache_path
from mm2c_runtime.executors.tensorrt.library import Library, check_version, open_library
from mm2c_runtime.executors.tensorrt.model import PlanModel
from mm2c_runtime.executors.tensorrt.plans import OpenPlan, most_pages, open_plan
from mm2c_runtime.executors.tensorrt.plugins import register_plugins, sampling_ops
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_tensorrt import PlanRank, TensorRTProgram

log = logging.getLogger("mm2c.tensorrt")


def load_plans(
    bundle: Path,
    manifest: Manifest,
    collectives: Collectives,
    device: torch.device,
    library: Library | None,
) -> LoadedRank:
    """``library`` replaces the installed one. Raises BundleError where something is missing, was changed, or does not
    fit this machine: all but the plans' own memory is allocated once everything was compared."""
    rank = checked_rank(bundle, manifest, collectives)
    program = manifest.tensorrt
    assert program is not None
    if library is None:
        library = open_library(manifest.engine, program.version)
    else:
        check_version(library, program.version)
    on_gpu = device.type == "cuda"
    check_target(program, device, torch.cuda.get_device_capability(device) if on_gpu else None)
    check_files(bundle, manifest, rank)
    expected = weights_of(program, rank)
    ops = sampling_ops(bundle, program.plugins, device)
    communicator = library.join(collectives, device) if collectives.ranks > 1 else None
    runtime = library.runtime()
    if program.plugins is not None:
        register_plugins(bundle, program.plugins, library)
    opened = _opened(bundle, program, rank, library, runtime)
    facts = facts_of(manifest, program, rank.rank, most_pages=_most_pages(opened, rank))
    _check_logits(bundle, facts, rank, opened)
    size, weights = rank_weights(bundle / rank.weights, manifest, expected, device, ALIGNMENT)
    cache = KernelCache(_cache_path(manifest, rank, opened, library, device), writes=rank.rank == 0)
    try:
        model = PlanModel(rank, opened, library, runtime, weights, communicator, cache, device)
    except torch.OutOfMemoryError as error:
        raise BundleError(
            f"the GPU's memory does not suffice beside {size / 2**30:.2f} GiB of weights for what the plans work in: "
            f"{str(error).splitlines()[0]}",
            where=str(bundle),
            remedy="end other programs on this GPU, build for more ranks (--tp) or with a smaller --prefill-chunk",
        ) from None
    except RuntimeError as error:
        raise BundleError(
            f"a plan cannot be prepared on {device}: {error}", where=str(bundle), remedy=REBUILD
        ) from error
    log.info(
        "plans: %d for %d runs, %.2f GiB to work in", len(opened), len(rank.runs), model.kept_bytes / 2**30
    )
    return LoadedRank(facts, model, ops, size + model.kept_bytes)


def _opened(
    bundle: Path, program: TensorRTProgram, rank: PlanRank, library: Library, runtime: object
) -> dict[int, OpenPlan]:
    began = time.monotonic()
    used = sorted({stage.plan for run in rank.runs for stage in run.stages})
    opened = {index: open_plan(bundle, program.plans[index], library, runtime) for index in used}
    log.info("plans: %d loaded in %.1f s", len(opened), time.monotonic() - began)
    return opened


def _check_logits(bundle: Path, facts: PlanFacts, rank: PlanRank, opened: dict[int, OpenPlan]) -> None:
    """The plans' logits are those that the runtime puts together."""
    expected: list[int | str] = ["batch", facts.columns]
    if facts.logits == "all":
        expected.insert(1, "seq")
    for run in rank.runs:
        plan = opened[run.stages[-1].plan].plan
        found = next(tensor for tensor in plan.tensors if tensor.kind == "logits")
        if found.dtype != "f32" or found.shape != expected:
            raise BundleError(
                f"the plan {plan.name} has logits {found.dtype} {found.shape}, the bundle's are f32 {expected}",
                where=str(bundle / "manifest.json"),
                remedy=REBUILD,
            )


def _cache_path(
    manifest: Manifest, rank: PlanRank, opened: dict[int, OpenPlan], library: Library, device: torch.device
) -> Path | None:
    if device.type != "cuda":
        return None
    plans = [manifest.files[opened[index].plan.plan or ""].sha256 for index in sorted(opened)]
    return kernel_cache_path(library.version, torch.cuda.get_device_name(device), plans)


def _most_pages(opened: dict[int, OpenPlan], rank: PlanRank) -> int | None:
    """Of KV cache, that all of the rank's plans take; None where the cache is not paged."""
    found = [most_pages(opened[stage.plan], stage.profile) for run in rank.runs for stage in run.stages]
    known = [pages for pages in found if pages is not None]
    return min(known, default=None)
