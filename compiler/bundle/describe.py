"""A bundle in figures, for `mm2c inspect`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mm2c.bundle.collective_facts import collective_facts
from mm2c.bundle.describe_plans import BYTES
from mm2c.bundle.graph_facts import graph_facts, shard_facts
from mm2c.bundle.rank_graph_file import REBUILD, load_graph, load_model
from mm2c.bundle.reports import read_reports
from mm2c.bundle.verified import golden_facts, verified_facts
from mm2c.checkpoint import read_config
from mm2c.checkpoint.family import with_family_note
from mm2c.collectives import Head, cheaper_head
from mm2c.config import Mapping, ModelConfig
from mm2c.memory import KV_ITEMSIZE
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import CudaRank, Manifest, RankProgram
from mm2c_runtime.manifest_file import read_bundle
from mm2c_runtime.manifest_tensorrt import PlanRank, TensorRTProgram, bound_name
from mm2c_runtime.weights.recipe import ITEMSIZE
from mm2c_runtime.weights.recipe_file import recipes_path

CACHE_DTYPES = {"float": "f32", "bfloat16": "bf16", "float8e4m3fn": "fp8"}  # by ONNX's spelling
ACTIVATION_BYTES = {"onnxruntime": 4}  # the other engines compute in bf16
KINDS = ("all_reduce", "all_gather", "reduce_scatter")


def describe(bundle: Path, *, checksums: bool = True) -> dict[str, Any]:
    """Facts of a bundle as plain values. Raises BundleError where a file is missing or altered.

    ``graphs`` has each rank's whole graph in the dialect (``rank*/model.onnx``), ``shards`` what of the model each
    rank holds, ``collectives`` the messages of a step, counted in the graphs and compared with the plan, ``ranks``
    the programs that run (a bundle built from config.json alone has none), and ``reports`` the JSON documents of
    ``report/``. ``plugins``: version of the plugin library, of engines that have one. ``verified`` and ``golden``: what
    `mm2c verify` left in the bundle, None where it left nothing.
    """
    manifest = read_bundle(bundle, checksums=checksums)
    config = read_config(bundle).model
    given, limits = manifest.mapping, manifest.limits
    mapping = Mapping(given.tp, given.ep, given.dp)
    reports = read_reports(bundle)
    files = [load_graph(bundle, rank) for rank in range(mapping.ranks)]
    graphs = [graph_facts(file) for file in files]
    shards = [shard_facts(file, manifest.model, mapping.at(file.rank)) for file in files]
    return {
        "bundle": str(bundle),
        "mm2c_version": manifest.mm2c_version,
        "engine": manifest.engine,
        "model": manifest.model.model_dump(),
        "notes": list(with_family_note((), config, bundle)),
        "mapping": {
            **given.model_dump(),
            "attention_dp": mapping.attention_dp,
            "ranks": mapping.ranks,
            "replicas": mapping.replicas,
            "gpus": mapping.gpus,
        },
        "limits": limits.model_dump(),
        "logits": manifest.logits,
        "weights": manifest.weights,
        "weight_format": manifest.weight_format,
        "checkpoint": manifest.checkpoint.model_dump() if manifest.checkpoint else None,
        "libraries": manifest.libraries,
        "plugins": _plugins(manifest),
        **_cache(manifest, graphs[0], shards[: mapping.tp]),
        "graphs": graphs,
        "shards": shards,
        "collectives": collective_facts(
            files,
            config,
            mapping,
            max_rows=limits.max_rows,
            prefill_chunk=limits.prefill_chunk,
            all_logits=manifest.logits == "all",
            itemsize=ACTIVATION_BYTES.get(manifest.engine, 2),
            head=_head(manifest, config, mapping),
        ),
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
            *(
                _tensorrt_program(bundle, manifest, program, rank)
                for program in (manifest.tensorrt,)
                if program is not None
                for rank in program.ranks
            ),
        ],
        "reports": reports,
        "verified": verified_facts(bundle, reports.get("verify")),
        "golden": golden_facts(bundle),
        "files": len(manifest.files),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
    }


def _plugins(manifest: Manifest) -> str | None:
    """The version of the plugin library, where there is one."""
    if manifest.cuda is not None:
        return manifest.cuda.version
    found = manifest.tensorrt.plugins if manifest.tensorrt else None
    return found.version if found else None


def _head(manifest: Manifest, config: ModelConfig, mapping: Mapping) -> Head:
    """As the build chose it; a bundle from config.json alone has no record of it."""
    program = manifest.cuda or manifest.tensorrt
    if program is not None:
        return program.head
    return (
        cheaper_head(config, mapping) if manifest.engine == "cuda" and manifest.logits == "last" else "gather"
    )


def _cache(manifest: Manifest, graph: dict[str, Any], group: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The cache's dtype, and the bytes that a token takes on all ranks of its attention ``group``, K and V of all
    layers: the ranks divide the heads, or hold some of them twice."""
    model = manifest.model
    declared = next(value["dtype"] for value in graph["inputs"] if value["name"] == "k_cache.0")
    dtype = CACHE_DTYPES[declared]
    heads = sum(stop - start for start, stop in (shard["kv_heads"] for shard in group))
    return {
        "kv_dtype": dtype,
        "kv_bytes_per_token": 2 * model.layers * heads * model.head_dim * KV_ITEMSIZE[dtype],
    }


def _program(bundle: Path, manifest: Manifest, lowering: str, program: RankProgram) -> dict[str, Any]:
    return {
        "lowering": lowering,
        "rank": program.rank,
        "segments": len(program.segments),
        "nodes": sum(len(load_model(bundle / segment.file).graph.node) for segment in program.segments),
        **_counts(collective.kind for collective in program.collectives),
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
        raise _unreadable(path) from None
    return {
        "lowering": "cuda",
        "rank": rank.rank,
        "segments": 1,
        "nodes": len(nodes),
        **_counts(kinds),
        "weight_bytes": _weight_bytes(bundle, manifest, rank.weights),
        "kv_heads": rank.kv.kv_heads,
    }


def _tensorrt_program(
    bundle: Path, manifest: Manifest, program: TensorRTProgram, rank: PlanRank
) -> dict[str, Any]:
    """A step of the first kind: every run goes through as many stages."""
    graphs = [program.plans[stage.plan].graph for stage in rank.runs[0].stages]
    models = {graph: load_model(bundle / graph).graph for graph in dict.fromkeys(graphs)}
    nodes = [node for graph in graphs for node in models[graph].node]
    kinds = [
        attribute.s.decode()
        for node in nodes
        if node.op_type == "DistCollective"
        for attribute in node.attribute
        if attribute.name == "collective_operation"
    ]
    return {
        "lowering": manifest.engine,
        "rank": rank.rank,
        "segments": len(graphs),
        "nodes": len(nodes),
        **_counts(kinds),
        "weight_bytes": _bound_bytes(program, rank),
        "kv_heads": program.kv.kv_heads,
    }


def _bound_bytes(program: TensorRTProgram, rank: PlanRank) -> int:
    """Of the tensors that the stages read, each once: there may be no file yet."""
    sizes = {
        bound_name(tensor.name, stage.first_layer): BYTES[tensor.dtype] * math.prod(map(int, tensor.shape))
        for stage in rank.runs[0].stages
        for tensor in program.plans[stage.plan].tensors
        if tensor.kind == "weight"
    }
    return sum(sizes.values())


def _counts(kinds: Iterable[str]) -> dict[str, int]:
    counted = Counter(kinds)
    return {f"{kind}s": counted[kind] for kind in KINDS}


def _weight_bytes(bundle: Path, manifest: Manifest, name: str) -> int:
    """Of a rank's weights file; where the bundle holds none, of the tensors that a start makes of the checkpoint."""
    if name in manifest.files:
        return manifest.files[name].bytes
    if manifest.weights != "checkpoint":
        where = str(bundle / "manifest.json")
        raise BundleError(f"the manifest does not list {name}", where=where, remedy=REBUILD)
    path = recipes_path(bundle / name)
    try:
        entries = json.loads(path.read_text(encoding="utf-8")).values()
        return sum(ITEMSIZE[entry["dtype"]] * math.prod(entry["shape"]) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _unreadable(path) from None


def _unreadable(path: Path) -> BundleError:
    return BundleError(f"{path.name} cannot be read", where=str(path), remedy=REBUILD)
