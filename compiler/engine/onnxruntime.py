"""The ONNX Runtime engine: a program's segments as files, and what the manifest says of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from mm2c.config import Mapping as CutOverRanks
from mm2c.config import ModelConfig
from mm2c.engine.external import Entry, write_external
from mm2c.lower.onnxruntime import WEIGHTS
from mm2c.lower.portable import attach_bodies
from mm2c.lower.program import Program
from mm2c.passes.outline_decoder_layer import outline_decoder_layers
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.manifest import KvSpec, RankProgram, Segment


def build(
    program: Program,
    bundle: Path,
    *,
    rank: int,
    lowering: str,
    entries: Mapping[str, Entry],
    kv: KvSpec,
    named: bool = False,
) -> tuple[list[Path], RankProgram]:
    """Write ``rank{rank}/{lowering}.{segment:03d}.onnx`` into ``bundle``.

    ``entries`` locates every tensor of ``program.recipes`` in the rank's weights file of this lowering, which
    need not be there yet. ``named``: the record names the tensors of each segment, for bundles without weights
    files. Returns the files written and the manifest's record; its paths are relative to
    ``bundle``.

    Raises:
        ValueError: ``entries`` and the program disagree.
    """
    folder = bundle / f"rank{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    files, records = [], []
    for i, segment in enumerate(program.segments):
        path = folder / f"{lowering}.{i:03d}.onnx"
        write_external(segment, path, program.recipes, WEIGHTS[lowering], entries)
        files.append(path)
        records.append(
            Segment(
                file=f"{folder.name}/{path.name}",
                inputs=[str(value.name) for value in segment.graph.inputs],
                outputs=[str(value.name) for value in segment.graph.outputs],
                tensors=[n for n, v in segment.graph.initializers.items() if v.const_value is None]
                if named
                else [],
            )
        )
    return files, RankProgram(
        rank=rank,
        segments=records,
        collectives=program.collectives,
        weights=f"{folder.name}/{WEIGHTS[lowering]}",
        kv=kv,
    )


def kv_spec(config: ModelConfig, mapping: CutOverRanks) -> KvSpec:
    """The cache of one rank."""
    heads = mapping.kv_heads_of_rank(config.kv_heads)
    return KvSpec(layers=config.layers, kv_heads=heads, head_dim=config.head_dim, dtype="f32")


def write_graph(graph: RankGraph, path: Path, entries: Mapping[str, Entry] | None = None) -> None:
    """Write a rank's whole dialect graph, function bodies included, for people and for other engines.

    Its tensors point into ``weights.safetensors`` beside ``path``; without ``entries`` (a build from
    config.json alone) only that file's name and the tensors' sizes are given. ``graph`` is left as it is.
    """
    model = ir.Model(
        graph.model.graph.clone(), ir_version=graph.model.ir_version, producer_name="mm2c", functions=[]
    )
    attach_bodies(model, collectives=True)
    outline_decoder_layers(model)
    write_external(model, path, graph.recipes, WEIGHTS["portable"], entries)
