"""The stages of a build between the checked request and the bundle, each with its cache entry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mm2c.bundle.cache import StageCache
from mm2c.checkpoint import Checkpoint
from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.progress import Progress
from mm2c.weights.layout import WeightJob, lay_out, shared_order
from mm2c.weights.recipe import Recipe
from mm2c.weights.recipe_file import SUFFIX, read_recipes, write_recipes
from mm2c_runtime.manifest import Lowering, RankProgram

STAGE_FILE = (
    ".stage.json"  # what the graph stage tells the weight stage; kept in the cache, not in the bundle
)


@dataclass(frozen=True)
class Graphs:
    """The graph stage's result: the manifest's programs and the weight files they read, by path in the bundle."""

    lowerings: dict[str, Lowering]
    recipes: dict[str, dict[str, Recipe]]

    def dump(self) -> str:
        return json.dumps(
            {
                "lowerings": {name: value.model_dump() for name, value in self.lowerings.items()},
                "weights": list(self.recipes),
            }
        )

    @classmethod
    def load(cls, stage: Path) -> Graphs:
        raw = json.loads((stage / STAGE_FILE).read_text(encoding="utf-8"))
        return cls(
            {name: Lowering.model_validate(value) for name, value in raw["lowerings"].items()},
            {path: read_recipes(stage / path) for path in raw["weights"]},
        )


@dataclass
class Stages:
    """One build's stages with their caches; ``made`` and ``reused`` name what happened."""

    config: ModelConfig
    formats: WeightFormats
    options: BuildOptions
    cache: StageCache
    progress: Progress

    def __post_init__(self) -> None:
        self.made: list[str] = []
        self.reused: list[str] = []

    def graphs(self, recipes: dict[str, Recipe], key: str, stage: Path) -> Graphs:
        """Trace, shard, lower and cut; writes ``rank*/*.onnx``, and the recipes of every weight file beside it."""
        title = f"graphs of {self.options.mapping.tp} rank(s)"
        if self.cache.fetch("graphs", key, stage) is not None:
            self.reused.append(title)
            graphs = Graphs.load(stage)
        else:
            graphs = self._lowered(recipes, stage)
            for path, of_file in graphs.recipes.items():
                write_recipes(stage / path, of_file)
            (stage / STAGE_FILE).write_text(graphs.dump(), encoding="utf-8")
            written = [*stage.glob("rank*/*.onnx"), *stage.glob(f"rank*/*{SUFFIX}"), stage / STAGE_FILE]
            self.cache.store("graphs", key, stage, [path.relative_to(stage).as_posix() for path in written])
            self.made.append(title)
        (stage / STAGE_FILE).unlink()
        return graphs

    def _lowered(self, recipes: dict[str, Recipe], stage: Path) -> Graphs:
        from mm2c.engine import onnxruntime as engine
        from mm2c.lower.cut import cut
        from mm2c.lower.onnxruntime import LOWERINGS, WEIGHTS
        from mm2c.lower.program import Program
        from mm2c.passes.shard import shard
        from mm2c.trace import trace

        tp = self.options.mapping.tp
        with self.progress.stage("Tracing transformers' module"):
            whole = trace(self.config, self.formats, self.options, recipes)
        programs: dict[tuple[int, str], Program] = {}
        ranks = []
        with self.progress.stage("Sharding and lowering", tp * len(LOWERINGS)) as bar:
            for rank in range(tp):
                ranks.append(shard(whole, self.config, self.options.mapping.at(rank)))
                for name, lower in LOWERINGS.items():
                    programs[rank, name] = cut(lower(ranks[rank]))
                    bar.advance()
        jobs = [
            WeightJob(stage / f"rank{rank}" / WEIGHTS[name], program.recipes)
            for (rank, name), program in programs.items()
        ]
        layouts = dict(zip(programs, lay_out(jobs, shared_order(jobs)), strict=True))
        found: dict[str, list[RankProgram]] = {name: [] for name in LOWERINGS}
        kv = engine.kv_spec(self.config, tp)
        with self.progress.stage("Writing graphs", len(programs)) as bar:
            for (rank, name), program in programs.items():
                places = {
                    n: (e.dtype, e.shape, e.offset, e.nbytes) for n, e in layouts[rank, name].entries.items()
                }
                _, record = engine.build(program, stage, rank=rank, lowering=name, entries=places, kv=kv)
                found[name].append(record)
                if name == "portable":
                    engine.write_graph(ranks[rank], stage / f"rank{rank}" / "model.onnx", places)
                bar.advance()
        lowerings = {
            name: Lowering(ranks=some, in_place=programs[0, name].in_place, padded=programs[0, name].padded)
            for name, some in found.items()
        }
        return Graphs(lowerings, {j.path.relative_to(stage).as_posix(): j.recipes for j in jobs})

    def bare_graphs(self, recipes: dict[str, Recipe], key: str, stage: Path) -> None:
        """``rank*/model.onnx`` alone: dialect graphs with function bodies, tensors named but absent."""
        from mm2c.engine.onnxruntime import write_graph
        from mm2c.passes.shard import shard
        from mm2c.trace import trace

        tp = self.options.mapping.tp
        title = f"graphs of {tp} rank(s)"
        if self.cache.fetch("graphs", key, stage) is not None:
            self.reused.append(title)
            return
        with self.progress.stage("Tracing transformers' module"):
            whole = trace(self.config, self.formats, self.options, recipes)
        with self.progress.stage("Sharding and writing graphs", tp) as bar:
            for rank in range(tp):
                (stage / f"rank{rank}").mkdir()
                own = shard(whole, self.config, self.options.mapping.at(rank))
                write_graph(own, stage / f"rank{rank}" / "model.onnx")
                bar.advance()
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
