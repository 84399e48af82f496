"""A bundle in figures, for `mm2c inspect`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm2c.memory import KV_ITEMSIZE
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import Manifest, RankProgram
from mm2c_runtime.manifest_file import read_bundle
from mm2c_runtime.memory import needed

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

REBUILD = "build the bundle again with `mm2c build … --force`"


def describe(bundle: Path, *, checksums: bool = True) -> dict[str, Any]:
    """Facts of a bundle as plain values. Raises BundleError where a file is missing or altered.

    ``graphs`` has each rank's whole graph in the dialect (``rank*/model.onnx``), ``ranks`` the programs that run;
    a bundle built from config.json alone has no programs.
    """
    manifest = read_bundle(bundle, checksums=checksums)
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
        "kv_bytes_per_token": _kv_bytes(bundle, manifest),
        "graphs": [_graph(bundle, rank) for rank in range(manifest.mapping.tp)],
        "ranks": [
            _program(bundle, manifest, name, program)
            for name, lowering in manifest.lowerings.items()
            for program in lowering.ranks
        ],
        "files": len(manifest.files),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
    }


def _kv_bytes(bundle: Path, manifest: Manifest) -> int:
    """Bytes that a token takes on all ranks, K and V of all layers."""
    first = next(iter(manifest.lowerings.values()), None)
    if first is None:  # graphs alone: their caches are f32, and the ranks divide the heads
        model = manifest.model
        return 2 * model.layers * model.kv_heads * model.head_dim * KV_ITEMSIZE["f32"]
    return needed(bundle, manifest, first).per_token


def _program(bundle: Path, manifest: Manifest, lowering: str, program: RankProgram) -> dict[str, Any]:
    if program.weights not in manifest.files:
        raise BundleError(
            f"the manifest does not list {program.weights}",
            where=str(bundle / "manifest.json"),
            remedy=REBUILD,
        )
    return {
        "lowering": lowering,
        "rank": program.rank,
        "segments": len(program.segments),
        "nodes": sum(len(_load(bundle / segment.file).graph.node) for segment in program.segments),
        "all_reduces": sum(c.kind == "all_reduce" for c in program.collectives),
        "all_gathers": sum(c.kind == "all_gather" for c in program.collectives),
        "weight_bytes": manifest.files[program.weights].bytes,
        "kv_heads": program.kv.kv_heads,
    }


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
