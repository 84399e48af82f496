"""A bundle in figures, for `mm2c inspect`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm2c.memory import KV_ITEMSIZE
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import CudaRank, Manifest, RankProgram
from mm2c_runtime.manifest_file import read_bundle

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

CACHE_DTYPES = {"float": "f32", "bfloat16": "bf16", "float8e4m3fn": "fp8"}  # by ONNX's spelling
REBUILD = "build the bundle again with `mm2c build … --force`"


def describe(bundle: Path, *, checksums: bool = True) -> dict[str, Any]:
    """Facts of a bundle as plain values. Raises BundleError where a file is missing or altered.

    ``graphs`` has each rank's whole graph in the dialect (``rank*/model.onnx``), ``ranks`` the programs that run;
    a bundle built from config.json alone has no programs. ``plugins``: the plugin library of the cuda engine.
    """
    manifest = read_bundle(bundle, checksums=checksums)
    graphs = [_graph(bundle, rank) for rank in range(manifest.mapping.tp)]
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
        "plugins": manifest.cuda.version if manifest.cuda else None,
        **_cache(manifest, graphs[0]),
        "graphs": graphs,
        "ranks": [
            *(
                _program(bundle, manifest, name, program)
                for name, lowering in manifest.lowerings.items()
                for program in lowering.ranks
            ),
            *(
                _cuda_program(bundle, manifest, rank)
                for rank in (manifest.cuda.ranks if manifest.cuda else ())
            ),
        ],
        "files": len(manifest.files),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
    }


def _cache(manifest: Manifest, graph: dict[str, Any]) -> dict[str, Any]:
    """The cache's dtype, and the bytes that a token takes on all ranks, K and V of all layers.

    Read from the graphs, which every bundle has: the ranks divide the heads.
    """
    model = manifest.model
    declared = next(value["dtype"] for value in graph["inputs"] if value["name"] == "k_cache.0")
    dtype = CACHE_DTYPES[declared]
    return {
        "kv_dtype": dtype,
        "kv_bytes_per_token": 2 * model.layers * model.kv_heads * model.head_dim * KV_ITEMSIZE[dtype],
    }


def _program(bundle: Path, manifest: Manifest, lowering: str, program: RankProgram) -> dict[str, Any]:
    return {
        "lowering": lowering,
        "rank": program.rank,
        "segments": len(program.segments),
        "nodes": sum(len(_load(bundle / segment.file).graph.node) for segment in program.segments),
        "all_reduces": sum(c.kind == "all_reduce" for c in program.collectives),
        "all_gathers": sum(c.kind == "all_gather" for c in program.collectives),
        "weight_bytes": _weight_bytes(bundle, manifest, program.weights),
        "kv_heads": program.kv.kv_heads,
    }


def _cuda_program(bundle: Path, manifest: Manifest, rank: CudaRank) -> dict[str, Any]:
    path = bundle / rank.program
    try:
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        kinds = [
            node["attributes"]["collective_operation"] for node in nodes if node["op"] == "DistCollective"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise BundleError(f"{path.name} cannot be read", where=str(path), remedy=REBUILD) from None
    return {
        "lowering": "cuda",
        "rank": rank.rank,
        "segments": 1,
        "nodes": len(nodes),
        "all_reduces": kinds.count("all_reduce"),
        "all_gathers": kinds.count("all_gather"),
        "weight_bytes": _weight_bytes(bundle, manifest, rank.weights),
        "kv_heads": rank.kv.kv_heads,
    }


def _weight_bytes(bundle: Path, manifest: Manifest, name: str) -> int:
    if name not in manifest.files:
        raise BundleError(
            f"the manifest does not list {name}", where=str(bundle / "manifest.json"), remedy=REBUILD
        )
    return manifest.files[name].bytes


def _graph(bundle: Path, rank: int) -> dict[str, Any]:
    name = f"rank{rank}/model.onnx"
    model = _load(bundle / name)
    ops = Counter(node.op_type for node in model.graph.node)
    return {
        "rank": rank,
        "file": name,
        "file_bytes": (bundle / name).stat().st_size,
        "nodes": len(model.graph.node),
        "ops": dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        "inputs": [_value(value) for value in model.graph.input],
        "outputs": [_value(value) for value in model.graph.output],
        "tensors": len(model.graph.initializer),
        "weight_bytes": sum(
            int(field.value)
            for tensor in model.graph.initializer
            for field in tensor.external_data
            if field.key == "length"
        ),
    }


def _value(value: ValueInfoProto) -> dict[str, Any]:
    """Name, dtype in ONNX's spelling, and shape: sizes, names of sizes, or None where unknown; None as a whole
    where the graph declares none."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    shape = [
        d.dim_value if d.HasField("dim_value") else d.dim_param if d.HasField("dim_param") else None
        for d in tensor.shape.dim
    ]
    dtype = TensorProto.DataType.Name(tensor.elem_type).lower()
    return {"name": value.name, "dtype": dtype, "shape": shape if tensor.HasField("shape") else None}


def _load(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise BundleError(
            f"{path.name} cannot be read: {error.strerror}", where=str(path), remedy=REBUILD
        ) from None
    except DecodeError:
        raise BundleError(f"{path.name} is no ONNX graph", where=str(path), remedy=REBUILD) from None
