"""The stages of a build between the checked request and the bundle, each with its cache entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mm2c.bundle.cache import StageCache
from mm2c.checkpoint import Checkpoint
from mm2c.checkpoint.convert import quantised_modules
from mm2c.checkpoint.quantization import quantization_report, summary_line
from mm2c.config import TENSORRT, BuildOptions, ModelConfig, WeightFormats
from mm2c.draw.files import write_layer_picture
from mm2c.engine.plugin_library import PluginLibrary
from mm2c.graphs import STAGE_FILE, Graphs
from mm2c.progress import Progress
from mm2c.proofs.reassemble import verify_shards
from mm2c.proofs.report import PROOFS, write_proofs
from mm2c.weights.journal import JOURNAL
from mm2c.weights.layout import WeightJob
from mm2c.weights.shards import Stamp
from mm2c_runtime.weights.recipe import Recipe
from mm2c_runtime.weights.recipe_file import SUFFIX, write_recipes

SHARDS = "report/shards.json"


@dataclass
class Stages:
    """One build's stages with their caches; ``made`` and ``reused`` name what happened. ``library``: what the cuda
    engine's programs are written for, None for other engines and for graphs alone. ``check_shards``: read the weights
    back once they are written, and compare them with the checkpoint."""

    config: ModelConfig
    formats: WeightFormats
    options: BuildOptions
    cache: StageCache
    progress: Progress
    library: PluginLibrary | None = None
    check_shards: bool = True

    def __post_init__(self) -> None:
        self.made: list[str] = []
        self.reused: list[str] = []

    def graphs(self, recipes: dict[str, Recipe], key: str, stage: Path, *, bare: bool = False) -> Graphs:
        """Trace, shard and lower; writes every file of ``rank*/`` but weights, the recipes of every weight file
        beside it, and the picture of a layer. ``bare``: for a bundle without weights, proved here, without recipes."""
        title = f"graphs of {self.options.mapping.ranks} rank(s)"
        if self.cache.fetch("graphs", key, stage) is not None:
            self.reused.append(title)
            graphs = Graphs.load(stage, bare=bare)
        else:
            graphs = self._written(recipes, stage)
            for path, of_file in () if bare else graphs.recipes.items():
                write_recipes(stage / path, of_file)
            (stage / STAGE_FILE).write_text(graphs.dump(), encoding="utf-8")
            kinds = ("rank*/*.onnx", f"rank*/*{SUFFIX}", "rank*/cuda.json", "plans/*.onnx")
            written = [*(path for kind in kinds for path in stage.glob(kind)), stage / STAGE_FILE]
            written.append(write_layer_picture(stage, self.options.mapping.ranks))
            if bare:
                written.append(self.prove(graphs.recipes, recipes, stage))
            self.cache.store("graphs", key, stage, [path.relative_to(stage).as_posix() for path in written])
            self.made.append(title)
        (stage / STAGE_FILE).unlink()
        return graphs

    def _written(self, recipes: dict[str, Recipe], stage: Path) -> Graphs:
        given = (self.config, self.formats, self.options, recipes)
        if self.options.engine in TENSORRT:
            from mm2c import graphs_tensorrt

            return graphs_tensorrt.write_graphs(*given, stage, self.progress)
        if self.library is not None:
            from mm2c import graphs_cuda

            return graphs_cuda.write_graphs(*given, self.library, stage, self.progress)
        from mm2c import graphs_onnxruntime

        return graphs_onnxruntime.write_graphs(*given, stage, self.progress)

    def bare_graphs(self, recipes: dict[str, Recipe], key: str, stage: Path) -> None:
        """``rank*/model.onnx`` and the picture of a layer: graphs with function bodies, tensors named but absent."""
        title = f"graphs of {self.options.mapping.ranks} rank(s)"
        if self.cache.fetch("graphs", key, stage) is not None:
            self.reused.append(title)
            return
        given = (self.config, self.formats, self.options, recipes, stage, self.progress)
        if self.options.engine == "cuda":
            from mm2c import graphs_cuda

            files = graphs_cuda.write_bare_graphs(*given)
        else:
            from mm2c import graphs_onnxruntime

            files = graphs_onnxruntime.write_bare_graphs(*given)
        proofs = self.prove(files, recipes, stage)
        written = [
            *stage.glob("rank*/*.onnx"),
            write_layer_picture(stage, self.options.mapping.ranks),
            proofs,
        ]
        self.cache.store("graphs", key, stage, [path.relative_to(stage).as_posix() for path in written])
        self.made.append(title)

    def prove(self, files: Mapping[str, Mapping[str, Recipe]], full: dict[str, Recipe], stage: Path) -> Path:
        """``report/proofs.json``: that the ranks' tensors tile the model's. ProofError, with a tensor's name, where
        they do not."""
        with self.progress.stage("Proving the shards"):
            write_proofs(stage, files, full, self.config, self.options.mapping)
        return stage / PROOFS

    def quantization(self, checkpoint: Checkpoint, key: str, stage: Path) -> str:
        """``report/quantization.json`` where dense weights become FP8; returns it in one line, else nothing."""
        modules = quantised_modules(self.config, checkpoint.formats, self.options.format)
        if not modules:
            return ""
        path = stage / "report" / "quantization.json"
        if self.cache.fetch("quantization", key, stage) is None:
            path.parent.mkdir(exist_ok=True)
            report = quantization_report(checkpoint, modules, self.progress)
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            self.cache.store("quantization", key, stage, [path.relative_to(stage).as_posix()])
        return summary_line(json.loads(path.read_text(encoding="utf-8")))

    def weights(
        self, graphs: Graphs, checkpoint: Checkpoint, key: str, stage: Path, stamps: Mapping[str, Stamp]
    ) -> dict[str, str]:
        """One pass over the checkpoint, whose files were ``stamps`` when it was opened; returns the sha256 of each
        file by its path in the bundle. What a killed build of this key wrote in ``stage`` is gone on with. Nothing
        is written where every start reads the tensors from the checkpoint."""
        if self.options.weights == "checkpoint":
            return {}
        from mm2c.weights.writer import write_all

        names = list(graphs.recipes)
        known = self.cache.fetch("weights", key, stage)
        if known is not None:
            self.reused.append("weights")
            return known
        jobs = [WeightJob(stage / name, recipes) for name, recipes in graphs.recipes.items()]
        for job in jobs:
            job.path.parent.mkdir(exist_ok=True)
        written = write_all(jobs, checkpoint, self.progress, journal=stage / JOURNAL, key=key, stamps=stamps)
        kept = [*names, self._reassembled(graphs, checkpoint, stage)] if self.check_shards else names
        self.cache.store("weights", key, stage, kept)
        self.made.append("weights")
        return {name: w.sha256 for name, w in zip(names, written, strict=True)}

    def _reassembled(self, graphs: Graphs, checkpoint: Checkpoint, stage: Path) -> str:
        """``report/shards.json``: that the files just written, put together again, are the checkpoint's tensors.
        ProofError, with a tensor's name, where they are not."""
        found = verify_shards(stage, checkpoint, self.progress, recipes=graphs.recipes)
        found.require()
        path = stage / SHARDS
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")
        return SHARDS
