"""The stages of a build between the checked request and the bundle, each with its cache entry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mm2c.bundle.cache import StageCache
from mm2c.checkpoint import Checkpoint
from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.engine.plugin_library import PluginLibrary
from mm2c.graphs import STAGE_FILE, Graphs
from mm2c.progress import Progress
from mm2c.weights.layout import WeightJob
from mm2c_runtime.weights.recipe import Recipe
from mm2c_runtime.weights.recipe_file import SUFFIX, write_recipes


@dataclass
class Stages:
    """One build's stages with their caches; ``made`` and ``reused`` name what happened. ``library``: what the cuda
    engine's programs are written for, None for other engines and for graphs alone."""

    config: ModelConfig
    formats: WeightFormats
    options: BuildOptions
    cache: StageCache
    progress: Progress
    library: PluginLibrary | None = None

    def __post_init__(self) -> None:
        self.made: list[str] = []
        self.reused: list[str] = []

    def graphs(self, recipes: dict[str, Recipe], key: str, stage: Path) -> Graphs:
        """Trace, shard and lower; writes every file of ``rank*/`` but weights, and the recipes of every weight file
        beside it."""
        title = f"graphs of {self.options.mapping.tp} rank(s)"
        if self.cache.fetch("graphs", key, stage) is not None:
            self.reused.append(title)
            graphs = Graphs.load(stage)
        else:
            graphs = self._written(recipes, stage)
            for path, of_file in graphs.recipes.items():
                write_recipes(stage / path, of_file)
            (stage / STAGE_FILE).write_text(graphs.dump(), encoding="utf-8")
            kinds = ("*.onnx", f"*{SUFFIX}", "cuda.json")
            written = [*(path for kind in kinds for path in stage.glob(f"rank*/{kind}")), stage / STAGE_FILE]
            self.cache.store("graphs", key, stage, [path.relative_to(stage).as_posix() for path in written])
            self.made.append(title)
        (stage / STAGE_FILE).unlink()
        return graphs

    def _written(self, recipes: dict[str, Recipe], stage: Path) -> Graphs:
        given = (self.config, self.formats, self.options, recipes)
        if self.library is not None:
            from mm2c import graphs_cuda

            return graphs_cuda.write_graphs(*given, self.library, stage, self.progress)
        from mm2c import graphs_onnxruntime

        return graphs_onnxruntime.write_graphs(*given, stage, self.progress)

    def bare_graphs(self, recipes: dict[str, Recipe], key: str, stage: Path) -> None:
        """``rank*/model.onnx`` alone: graphs with function bodies, tensors named but absent."""
        title = f"graphs of {self.options.mapping.tp} rank(s)"
        if self.cache.fetch("graphs", key, stage) is not None:
            self.reused.append(title)
            return
        given = (self.config, self.formats, self.options, recipes, stage, self.progress)
        if self.options.engine == "cuda":
            from mm2c import graphs_cuda

            graphs_cuda.write_bare_graphs(*given)
        else:
            from mm2c import graphs_onnxruntime

            graphs_onnxruntime.write_bare_graphs(*given)
        self.cache.store(
            "graphs", key, stage, [p.relative_to(stage).as_posix() for p in stage.glob("rank*/*.onnx")]
        )
        self.made.append(title)

    def weights(self, graphs: Graphs, checkpoint: Checkpoint, key: str, stage: Path) -> dict[str, str]:
        """One pass over the checkpoint; returns the sha256 of each file by its path in the bundle."""
        from mm2c.weights.writer import write_all

        names = list(graphs.recipes)
        known = self.cache.fetch("weights", key, stage)
        if known is not None:
            self.reused.append("weights")
            return known
        jobs = [WeightJob(stage / name, recipes) for name, recipes in graphs.recipes.items()]
        for job in jobs:
            job.path.parent.mkdir(exist_ok=True)
        written = write_all(jobs, checkpoint, self.progress)
        self.cache.store("weights", key, stage, names)
        self.made.append("weights")
        return {name: w.sha256 for name, w in zip(names, written, strict=True)}
