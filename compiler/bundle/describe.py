"""A bundle in figures, for `mm2c inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm2c_runtime.manifest import RankProgram
from mm2c_runtime.manifest_file import read_bundle

KV_ITEMSIZE = {"f32": 4, "bf16": 2, "fp8": 1}


def _nodes(bundle: Path, program: RankProgram) -> int:
    import onnx

    count = 0
    for segment in program.segments:
        model = onnx.load(bundle / segment.file, load_external_data=False)
        count += len(model.graph.node)
    return count


def describe(bundle: Path, *, checksums: bool = True) -> dict[str, Any]:
    """Facts of a bundle as plain values. Raises BundleError where a file is missing or altered."""
    manifest = read_bundle(bundle, checksums=checksums)
    ranks = [
        {
            "lowering": name,
            "rank": program.rank,
            "segments": len(program.segments),
            "nodes": _nodes(bundle, program),
            "all_reduces": sum(c.kind == "all_reduce" for c in program.collectives),
            "all_gathers": sum(c.kind == "all_gather" for c in program.collectives),
            "weight_bytes": manifest.files[program.weights].bytes,
            "kv_heads": program.kv.kv_heads,
        }
        for name, lowering in manifest.lowerings.items()
        for program in lowering.ranks
    ]
    first = next(iter(manifest.lowerings.values()), None)
    per_token = sum(
        2 * p.kv.layers * p.kv.kv_heads * p.kv.head_dim * KV_ITEMSIZE[p.kv.dtype]
        for p in (first.ranks if first else [])
    )
    return {
        "bundle": str(bundle),
        "mm2c_version": manifest.mm2c_version,
        "engine": manifest.engine,
        "model": manifest.model.model_dump(),
        "mapping": manifest.mapping.model_dump(),
        "limits": manifest.limits.model_dump(),
        "logits": manifest.logits,
        "checkpoint": manifest.checkpoint.model_dump() if manifest.checkpoint else None,
        "libraries": manifest.libraries,
        "kv_bytes_per_token": per_token,
        "ranks": ranks,
        "files": len(manifest.files),
        "bytes": sum(e.bytes for e in manifest.files.values()),
    }
