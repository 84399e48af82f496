"""A TensorRT bundle's plans in figures: what the manifest says of them, and what TensorRT says."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from mm2c.bundle.inspect_engine import Inside, look_inside
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_tensorrt import Plan, PlanRank, Profile, TensorRTProgram

BYTES = {"f32": 4, "bf16": 2, "f16": 2, "i32": 4, "i64": 8, "bool": 1, "e4m3": 1}


def tensorrt_facts(bundle: Path, manifest: Manifest, program: TensorRTProgram) -> dict[str, Any]:
    """``library``: version that built the plans, empty where they are still to be built. ``plans``: each distinct plan
    with its tensors by kind, how many stages of all ranks run it, and ``inside``: its layers as ``look_inside`` finds
    them. ``ranks``: the stages that a step goes through. Sizes in bytes."""
    runs = Counter(
        stage.plan for rank in program.ranks for run in rank.runs for stage in run.stages
    )  # of a plan by all ranks and profiles
    inside = look_inside(bundle, manifest.engine, program)
    return {
        "library": program.version,
        "target": program.target,
        "deferred": program.deferred,
        "head": program.head,
        "kv": program.kv.model_dump(),
        "scratch": max((plan.scratch for plan in program.plans), default=0),
        "plans": [
            _plan(bundle, manifest, plan, inside[plan.name]) | {"stages": runs[number]}
            for number, plan in enumerate(program.plans)
        ],
        "ranks": [_rank(rank, program) for rank in program.ranks],
    }


def _plan(bundle: Path, manifest: Manifest, plan: Plan, inside: Inside) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {}
    for tensor in plan.tensors:
        name = tensor.kind if tensor.mode == "input" else f"{tensor.kind} out"
        kind = kinds.setdefault(name, {"tensors": 0, "dtypes": {}, "bytes": 0})
        kind["tensors"] += 1
        kind["dtypes"][tensor.dtype] = kind["dtypes"].get(tensor.dtype, 0) + 1
        sizes = [size for size in tensor.shape if isinstance(size, int)]
        if kind["bytes"] is not None and len(sizes) == len(tensor.shape):
            kind["bytes"] += math.prod(sizes) * BYTES[tensor.dtype]
        else:
            kind["bytes"] = None  # depends on the step
    file = plan.plan and manifest.files.get(plan.plan)
    return {
        "name": plan.name,
        "layers": plan.layers,
        "file": plan.plan,
        "bytes": file.bytes if file else 0,
        "sha256": file.sha256 if file else "",
        "graph": plan.graph,
        "graph_bytes": manifest.files[plan.graph].bytes if plan.graph in manifest.files else 0,
        "profiles": [profile_facts(profile) for profile in plan.profiles],
        "scratch": plan.scratch,
        "tensors": kinds,
        "inside": inside.as_json(),
    }


def profile_facts(profile: Profile) -> dict[str, Any]:
    return {"name": profile.name, "batch": list(profile.batch), "seq": list(profile.seq)}


def _rank(rank: PlanRank, program: TensorRTProgram) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "weights": rank.weights,
        "constants": rank.constants,
        "runs": [
            {
                "profile": profile_facts(run.profile),
                "stages": [
                    {
                        "plan": program.plans[stage.plan].name,
                        "profile": stage.profile,
                        "first_layer": stage.first_layer,
                        "layers": program.plans[stage.plan].layers,
                    }
                    for stage in run.stages
                ],
            }
            for run in rank.runs
        ],
    }
