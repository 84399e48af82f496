"""The graph stage for the cuda engine: trace in bf16, one paged program a rank."""

from __future__ import annotations

from pathlib import Path

from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.engine import cuda as engine
from mm2c.engine.plugin_library import PluginLibrary
from mm2c.graphs import Graphs
from mm2c.lower.cuda import lower_cuda
from mm2c.lower.local_head import lower_to_local_head
from mm2c.lower.program import LoweredRank
from mm2c.passes.shard import shard
from mm2c.progress import Progress
from mm2c.trace import trace
from mm2c.weights.layout import WeightJob, lay_out, shared_order
from mm2c_runtime.weights.recipe import Recipe


def write_graphs(
    config: ModelConfig,
    formats: WeightFormats,
    options: BuildOptions,
    recipes: dict[str, Recipe],
    library: PluginLibrary,
    stage: Path,
    progress: Progress,
) -> Graphs:
    """``rank*/cuda.json`` and ``rank*/model.onnx``."""
    ranks = _lowered(config, formats, options, recipes, progress)
    jobs = [
        WeightJob(stage / f"rank{rank}" / engine.WEIGHTS, lowered.recipes)
        for rank, lowered in enumerate(ranks)
    ]
    layouts = lay_out(jobs, shared_order(jobs))
    records = []
    with progress.stage("Writing graphs", len(ranks)) as bar:
        for rank, (lowered, layout) in enumerate(zip(ranks, layouts, strict=True)):
            records.append(
                engine.build(lowered, stage, rank=rank, config=config, options=options, library=library)
            )
            places = {n: (e.dtype, e.shape, e.offset, e.nbytes) for n, e in layout.entries.items()}
            engine.write_graph(lowered, stage / f"rank{rank}" / "model.onnx", places)
            bar.advance()
    files = {job.path.relative_to(stage).as_posix(): job.recipes for job in jobs}
    return Graphs(files, cuda=engine.record(records, library, engine.head_of(config, options)))


def write_bare_graphs(
    config: ModelConfig,
    formats: WeightFormats,
    options: BuildOptions,
    recipes: dict[str, Recipe],
    stage: Path,
    progress: Progress,
) -> dict[str, dict[str, Recipe]]:
    """``rank*/model.onnx`` alone: paged graphs with function bodies, tensors named but absent. Returns the recipes of
    the weight files that they would have."""
    files = {}
    for rank, lowered in enumerate(_lowered(config, formats, options, recipes, progress)):
        (stage / f"rank{rank}").mkdir()
        engine.write_graph(lowered, stage / f"rank{rank}" / "model.onnx")
        files[f"rank{rank}/{engine.WEIGHTS}"] = lowered.recipes
    return files


def _lowered(
    config: ModelConfig,
    formats: WeightFormats,
    options: BuildOptions,
    recipes: dict[str, Recipe],
    progress: Progress,
) -> list[LoweredRank]:
    with progress.stage("Tracing transformers' module"):
        whole = trace(config, formats, options, recipes, activation="bf16")
    ranks = []
    with progress.stage("Sharding and lowering", options.mapping.ranks) as bar:
        for rank in range(options.mapping.ranks):
            own = shard(whole, config, options.mapping.at(rank))
            ranks.append(lower_cuda(own, engine.kv_type(options)))
            if engine.head_of(config, options) == "candidates":
                lower_to_local_head(ranks[-1])
            bar.advance()
    return ranks
