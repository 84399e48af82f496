"""What a bundle's engine runs, in figures, for `mm2c inspect --engine`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mm2c.bundle.describe_plans import tensorrt_facts
from mm2c.bundle.rank_graph_file import REBUILD, load_model
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import CudaRank, Manifest, RankProgram
from mm2c_runtime.manifest_file import read_bundle


def describe_engine(bundle: Path, *, checksums: bool = True) -> dict[str, Any]:
    """Facts of what runs as plain values. Raises BundleError where a file is missing or altered.

    ``libraries``: versions at the build. ``programs``: of the engines onnxruntime and cuda, the chain of segments that
    each rank runs; a bundle built from config.json alone has none. ``plugins``: the plugin library of the engines cuda
    and tensorrt. ``tensorrt``: of the engines tensorrt and tensorrt-rtx, see ``tensorrt_facts``; else None.
    """
    manifest = read_bundle(bundle, checksums=checksums)
    programs = [
        _rank_program(bundle, name, program)
        for name, lowering in manifest.lowerings.items()
        for program in lowering.ranks
    ]
    programs += [_cuda_program(bundle, rank) for rank in (manifest.cuda.ranks if manifest.cuda else ())]
    return {
        "bundle": str(bundle),
        "engine": manifest.engine,
        "mm2c_version": manifest.mm2c_version,
        "libraries": manifest.libraries,
        "plugins": _plugins(manifest),
        "programs": programs,
        "tensorrt": tensorrt_facts(bundle, manifest, manifest.tensorrt) if manifest.tensorrt else None,
    }


def _plugins(manifest: Manifest) -> dict[str, Any] | None:
    found = manifest.cuda or (manifest.tensorrt.plugins if manifest.tensorrt else None)
    if found is None:
        return None
    return {"library": found.library, "host": found.host, "version": found.version, "abi": found.abi}


def _rank_program(bundle: Path, lowering: str, program: RankProgram) -> dict[str, Any]:
    segments = []
    for number, segment in enumerate(program.segments):
        after = program.collectives[number].kind if number < len(program.collectives) else None
        ops = [node.op_type for node in load_model(bundle / segment.file).graph.node]
        segments.append(_segment(segment.file, ops, len(segment.inputs), len(segment.outputs), after))
    return _program(lowering, program.rank, program.weights, segments)


def _cuda_program(bundle: Path, rank: CudaRank) -> dict[str, Any]:
    path = bundle / rank.program
    try:
        nodes = json.loads(path.read_text(encoding="utf-8"))
        ops = [node["op"] for node in nodes["nodes"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise BundleError(f"{path.name} cannot be read", where=str(path), remedy=REBUILD) from None
    inputs, outputs = (len(nodes.get(name, ())) for name in ("inputs", "outputs"))
    return _program("cuda", rank.rank, rank.weights, [_segment(rank.program, ops, inputs, outputs, None)])


def _segment(file: str, ops: Iterable[str], inputs: int, outputs: int, after: str | None) -> dict[str, Any]:
    """``after``: the collective between this segment and the next one."""
    counted = Counter(ops)
    return {
        "file": file,
        "nodes": sum(counted.values()),
        "ops": dict(counted.most_common()),
        "inputs": inputs,
        "outputs": outputs,
        "collective_after": after,
    }


def _program(lowering: str, rank: int, weights: str, segments: list[dict[str, Any]]) -> dict[str, Any]:
    ops: Counter[str] = Counter()
    for segment in segments:
        ops.update(segment["ops"])
    return {
        "lowering": lowering,
        "rank": rank,
        "weights": weights,
        "nodes": sum(segment["nodes"] for segment in segments),
        "ops": dict(ops.most_common()),
        "segments": segments,
    }
