"""The graph stage for ONNX Runtime: trace in f32, cut at the collectives, two lowerings."""

from __future__ import annotations

from pathlib import Path

from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.engine import onnxruntime as engine
from mm2c.graphs import Graphs
from mm2c.lower.cut import cut
from mm2c.lower.onnxruntime import LOWERINGS, WEIGHTS
from mm2c.lower.program import Program
from mm2c.passes.shard import shard
from mm2c.progress import Progress
from mm2c.trace import trace
from mm2c.weights.layout import WeightJob, lay_out, shared_order
from mm2c_runtime.manifest import Lowering, RankProgram
from mm2c_runtime.weights.recipe import Recipe


def write_graphs(
    config: ModelConfig,
    formats: WeightFormats,
    options: BuildOptions,
    recipes: dict[str, Recipe],
    stage: Path,
    progress: Progress,
) -> Graphs:
    """``rank*/{fast,portable}.*.onnx`` and ``rank*/model.onnx``."""
    mapping = options.mapping
    with progress.stage("Tracing transformers' module"):
        whole = trace(config, formats, options, recipes)
    programs: dict[tuple[int, str], Program] = {}
    ranks = []
    with progress.stage("Sharding and lowering", mapping.ranks * len(LOWERINGS)) as bar:
        for rank in range(mapping.ranks):
            ranks.append(shard(whole, config, mapping.at(rank)))
            for name, lower in LOWERINGS.items():
                programs[rank, name] = cut(lower(ranks[rank]))
                bar.advance()
    jobs = [
        WeightJob(stage / f"rank{rank}" / WEIGHTS[name], program.recipes)
        for (rank, name), program in programs.items()
    ]
    layouts = dict(zip(programs, lay_out(jobs, shared_order(jobs)), strict=True))
    found: dict[str, list[RankProgram]] = {name: [] for name in LOWERINGS}
    kv, named = engine.kv_spec(config, mapping), options.weights == "checkpoint"
    with progress.stage("Writing graphs", len(programs)) as bar:
        for (rank, name), program in programs.items():
            places = {
                n: (e.dtype, e.shape, e.offset, e.nbytes) for n, e in layouts[rank, name].entries.items()
            }
            _, record = engine.build(
                program, stage, rank=rank, lowering=name, entries=places, kv=kv, named=named
            )
            found[name].append(record)
            if name == "portable":
                engine.write_graph(ranks[rank], stage / f"rank{rank}" / "model.onnx", places)
            bar.advance()
    lowerings = {
        name: Lowering(ranks=some, in_place=programs[0, name].in_place, padded=programs[0, name].padded)
        for name, some in found.items()
    }
    return Graphs({j.path.relative_to(stage).as_posix(): j.recipes for j in jobs}, lowerings)


def write_bare_graphs(
    config: ModelConfig,
    formats: WeightFormats,
    options: BuildOptions,
    recipes: dict[str, Recipe],
    stage: Path,
    progress: Progress,
) -> dict[str, dict[str, Recipe]]:
    """``rank*/model.onnx`` alone: the dialect over rows with function bodies, tensors named but absent. Returns the
    recipes of the weight files that they would have."""
    files = {}
    with progress.stage("Tracing transformers' module"):
        whole = trace(config, formats, options, recipes)
    with progress.stage("Sharding and writing graphs", options.mapping.ranks) as bar:
        for rank in range(options.mapping.ranks):
            (stage / f"rank{rank}").mkdir()
            own = shard(whole, config, options.mapping.at(rank))
            engine.write_graph(own, stage / f"rank{rank}" / "model.onnx")
            files[f"rank{rank}/{WEIGHTS['portable']}"] = own.recipes
            bar.advance()
    return files
