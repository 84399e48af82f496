"""The cuda engine: a rank's program as a file, its graph beside it, and what the manifest says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from mm2c.collectives import Head, cheaper_head
from mm2c.config import PAGE, BuildOptions, ModelConfig
from mm2c.engine.cuda_program import ProgramFacts, program_of
from mm2c.engine.external import Entry, write_external
from mm2c.engine.plugin_library import ABI, HOST, LIBRARY, PluginLibrary
from mm2c.lower.portable import attach_bodies
from mm2c.lower.program import LoweredRank
from mm2c.passes.outline_decoder_layer import outline_decoder_layers
from mm2c_runtime.manifest import CudaProgram, CudaRank, PagedKvSpec

PROGRAM = "cuda.json"
WEIGHTS = "weights.safetensors"


def kv_spec(config: ModelConfig, options: BuildOptions) -> PagedKvSpec:
    """The cache of one rank.

    Raises:
        ValueError: a cache dtype that the engine does not have.
    """
    if options.kv_dtype not in ("bf16", "fp8"):
        raise ValueError(f"the cuda engine has no cache of {options.kv_dtype}")
    return PagedKvSpec(
        layers=config.layers,
        kv_heads=options.mapping.kv_heads_of_rank(config.kv_heads),
        head_dim=config.head_dim,
        page=PAGE,
        dtype="fp8" if options.kv_dtype == "fp8" else "bf16",
    )


def kv_type(options: BuildOptions) -> ir.DataType:
    """The cache's element type in the graph."""
    return ir.DataType.FLOAT8E4M3FN if options.kv_dtype == "fp8" else ir.DataType.BFLOAT16


def head_of(config: ModelConfig, options: BuildOptions) -> Head:
    """How the ranks choose tokens: candidates where they move less, unless every token's logits are wanted."""
    return "gather" if options.all_logits else cheaper_head(config, options.mapping)


def build(
    lowered: LoweredRank,
    bundle: Path,
    *,
    rank: int,
    config: ModelConfig,
    options: BuildOptions,
    library: PluginLibrary,
) -> CudaRank:
    """Write ``rank{rank}/cuda.json``. The weights file that it names need not be there yet. Returns the
    manifest's record; its paths are relative to ``bundle``."""
    folder = bundle / f"rank{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    kv = kv_spec(config, options)
    width = -(-config.vocab // options.mapping.tp)
    first = options.mapping.at(rank).tp_rank * width
    local = {"first": first, "tokens": min(width, config.vocab - first), "width": width}
    facts = ProgramFacts(
        rank=rank,
        ranks=options.mapping.ranks,
        kv=kv,
        vocab=config.vocab,
        logits="all" if options.all_logits else "last",
        context=options.context,
        max_rows=options.max_rows,
        prefill_chunk=options.prefill_chunk,
        library=library.version,
        abi=ABI,
        weights_file=WEIGHTS,
        head=local if head_of(config, options) == "candidates" else None,
    )
    program = program_of(lowered, facts)
    (folder / PROGRAM).write_text(_laid_out(program), encoding="utf-8")
    return CudaRank(rank=rank, program=f"{folder.name}/{PROGRAM}", weights=f"{folder.name}/{WEIGHTS}", kv=kv)


def record(ranks: list[CudaRank], library: PluginLibrary, head: Head) -> CudaProgram:
    """What the manifest says of the engine."""
    return CudaProgram(ranks=ranks, library=LIBRARY, host=HOST, version=library.version, abi=ABI, head=head)


def write_graph(lowered: LoweredRank, path: Path, entries: Mapping[str, Entry] | None = None) -> None:
    """Write a rank's paged graph, decoder layers and function bodies included, for people and for other engines.

    Its tensors point into ``weights.safetensors`` beside ``path``; without ``entries`` only that file's name and
    the tensors' sizes are given. ``lowered`` is left as it is.
    """
    source = lowered.model
    model = ir.Model(source.graph.clone(), ir_version=source.ir_version, producer_name="mm2c", functions=[])
    attach_bodies(model, collectives=True)
    outline_decoder_layers(model)
    write_external(model, path, lowered.recipes, WEIGHTS, entries)


def _laid_out(program: dict[str, object]) -> str:
    """JSON with a line a node, a tensor and a constant: to be read by people and compared by diff."""
    parts = []
    for key, value in program.items():
        if isinstance(value, dict) and key in ("constants", "weights"):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            parts.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
        elif isinstance(value, list) and key == "nodes":
            inner = ",\n".join(f"  {json.dumps(node)}" for node in value)
            parts.append(f"{json.dumps(key)}: [\n{inner}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
