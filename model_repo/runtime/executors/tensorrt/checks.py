"""What a bundle of plans must be before anything of it is loaded: complete, built, unchanged, and for this machine."""

from __future__ import annotations

from pathlib import Path

import torch

from mm2c_runtime.checksums import check_contents, check_sizes
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.collectives import Collectives
from mm2c_runtime.executors.cuda.program import TensorType
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_tensorrt import PlanRank, PlanRun, TensorRTProgram, bound_name

REBUILD = "build the bundle again with `mm2c build … --force`"


def checked_rank(bundle: Path, manifest: Manifest, collectives: Collectives) -> PlanRank:
    """This rank's part. Raises BundleError where the manifest lacks it, where plans are still to be built, where the
    ranks are not those of the bundle, and where the manifest's own parts do not fit each other."""
    where = str(bundle / "manifest.json")
    program = manifest.tensorrt
    if program is None:
        raise BundleError(
            f"the bundle is for the engine {manifest.engine} and has no plans",
            where=where,
            remedy="build with `--engine tensorrt-rtx` or `--engine tensorrt`",
        )
    check_built(bundle, program)
    if manifest.mapping.attention_dp > 1:
        raise BundleError(
            "plans cannot exchange tokens between attention groups",
            where=where,
            remedy="build with `--engine cuda`, or without attention-DP (--ep at most --tp)",
        )
    if collectives.ranks != len(program.ranks):
        raise BundleError(
            f"the bundle is for {len(program.ranks)} GPUs, {collectives.ranks} rank(s) load it",
            where=where,
            remedy=f"make {len(program.ranks)} GPUs visible, or build with `--tp {collectives.ranks}`",
        )
    rank = program.ranks[collectives.rank]
    fault = _fault(manifest, program, rank, collectives.rank)
    if fault:
        raise BundleError(f"the manifest's plans cannot be run: {fault}", where=where, remedy=REBUILD)
    return rank


def check_built(bundle: Path, program: TensorRTProgram) -> None:
    """Raises BundleError where plans are still to be built."""
    names = [plan.name for plan in program.plans if plan.plan is None]
    if names:
        raise BundleError(
            f"{len(names)} of the bundle's {len(program.plans)} plans are still to be built: {', '.join(names)}",
            where=str(bundle),
            remedy=f"`mm2c build --finish {bundle}`, on the machine that serves it",
        )


def check_files(bundle: Path, manifest: Manifest, rank: PlanRank) -> None:
    """Plans are compared by content, the rank's weights by size (``Bundle.load`` compares content). Raises BundleError
    where one is missing or another."""
    assert manifest.tensorrt is not None
    used = {stage.plan for run in rank.runs for stage in run.stages}
    plans = [manifest.tensorrt.plans[index].plan or "" for index in sorted(used)]
    unknown = [name for name in plans if name not in manifest.files]
    if unknown:
        raise BundleError(
            f"the manifest does not list {unknown[0]} among the bundle's files",
            where=str(bundle / "manifest.json"),
            remedy=REBUILD,
        )
    check_contents(bundle, {name: manifest.files[name] for name in plans})
    if rank.weights in manifest.files:
        check_sizes(bundle, {rank.weights: manifest.files[rank.weights]})


def check_target(program: TensorRTProgram, device: torch.device, capability: tuple[int, int] | None) -> None:
    """Raises BundleError where the plans were built for other GPUs; ``capability`` None: not a GPU."""
    if capability is None or not program.target:
        return
    found = f"{capability[0]}.{capability[1]}"
    if found not in program.target:
        raise BundleError(
            f"the plans were built for compute capability {', '.join(program.target)}, this GPU has {found}",
            where=str(device),
            remedy=f"build with `--target sm{capability[0]}{capability[1]}` where the engine knows it, "
            "or serve on such a GPU; `--engine cuda` runs on every GPU from 8.0 on",
        )


def weights_of(program: TensorRTProgram, rank: PlanRank) -> dict[str, TensorType]:
    """The tensors that the rank's stages read, by the model's names. Raises ValueError where two stages read one as
    different things."""
    found: dict[str, TensorType] = {}
    for run in rank.runs:
        for stage in run.stages:
            for tensor in program.plans[stage.plan].tensors:
                if tensor.kind != "weight":
                    continue
                name = bound_name(tensor.name, stage.first_layer)
                kind = TensorType(tensor.dtype, tuple(int(size) for size in tensor.shape))
                if found.setdefault(name, kind) != kind:
                    raise ValueError(f"the plans read {name} as {found[name]} and as {kind}")
    return found


def _fault(manifest: Manifest, program: TensorRTProgram, rank: PlanRank, number: int) -> str:
    """What keeps a rank's runs from being the model; "" where they are."""
    if rank.rank != number:
        return f"rank {number} is called rank {rank.rank}"
    if program.kv.layers != manifest.model.layers:
        return f"the cache is of {program.kv.layers} layers, the model has {manifest.model.layers}"
    if program.head == "candidates" and (manifest.logits == "all" or len(program.ranks) == 1):
        return "its logits are of a part of the vocabulary"
    for run in rank.runs:
        fault = _run_fault(program, rank, run)
        if fault:
            return f"{run.profile.name}: {fault}"
    limits = manifest.limits
    steps = [(rows, 1) for rows in range(1, limits.max_rows + 1)]
    for batch, seq in (*steps, *((1, tokens) for tokens in range(2, limits.prefill_chunk + 1))):
        if not any(run.profile.covers(batch, seq) for run in rank.runs):
            return f"none takes a step of {batch} rows of {seq} tokens"
    try:
        weights_of(program, rank)
    except ValueError as error:
        return str(error)
    return ""


def _run_fault(program: TensorRTProgram, rank: PlanRank, run: PlanRun) -> str:
    layer, handed = 0, set[str]()
    for number, stage in enumerate(run.stages):
        if not 0 <= stage.plan < len(program.plans):
            return f"stage {number} has plan {stage.plan} of {len(program.plans)}"
        plan = program.plans[stage.plan]
        if not 0 <= stage.profile < len(plan.profiles):
            return f"stage {number} has profile {stage.profile} of {len(plan.profiles)}"
        if stage.first_layer != layer:
            return f"stage {number} begins with layer {stage.first_layer}, not {layer}"
        layer += plan.layers
        profile, wide = plan.profiles[stage.profile], run.profile
        corners = [(wide.batch[end], wide.seq[end]) for end in (0, 2)]
        if not all(profile.covers(*corner) for corner in corners):
            return f"stage {number}: profile {profile.name} of {plan.name} does not cover {wide.name}"
        taken = {t.name.partition(".")[2] for t in plan.tensors if t.kind == "hidden" and t.mode == "input"}
        if taken != handed:
            return f"stage {number} takes {sorted(taken)}, the one before hands on {sorted(handed)}"
        handed = {t.name.partition(".")[2] for t in plan.tensors if t.kind == "hidden" and t.mode == "output"}
        last = any(tensor.kind == "logits" for tensor in plan.tensors)
        if last != (number == len(run.stages) - 1):
            return f"stage {number} of {len(run.stages)} has {'the' if last else 'no'} logits"
        for tensor in plan.tensors:
            if tensor.kind == "constant" and tensor.name not in rank.constants:
                return f"{plan.name} reads the constant {tensor.name}, which the rank lacks"
    if layer != program.kv.layers:
        return f"its stages have {layer} layers of {program.kv.layers}"
    return f"it hands on {sorted(handed)}" if handed else ""
