"""Where the stages meet: checkpoint → trace → passes → lower → engine → weights → bundle."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c.bundle import carried
from mm2c.bundle.cache import StageCache, cache_root, key_of
from mm2c.bundle.fresh import is_fresh
from mm2c.bundle.keys import chat_key, content_key, graphs_key
from mm2c.bundle.manifest import write_manifest
from mm2c.bundle.staging import check_output, staged
from mm2c.checkpoint import (
    Checkpoint,
    assumed_formats,
    locate,
    locate_config,
    read_config,
    recipes_for_config,
)
from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.engine.select import Choice, select_engine
from mm2c.errors import UserError
from mm2c.memory import check_host_memory
from mm2c.passes.legality import check_mapping
from mm2c.progress import Progress, Quiet
from mm2c.request import BuildReport, BuildRequest
from mm2c.weights.layout import WeightJob, lay_out, shared_order
from mm2c.weights.recipe import Recipe
from mm2c.weights.recipe_json import from_json, to_json
from mm2c_runtime.manifest import CheckpointInfo, Lowering, RankProgram

__all__ = ["BuildReport", "BuildRequest", "build_bundle"]

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
                "recipes": {
                    path: {n: to_json(r) for n, r in some.items()} for path, some in self.recipes.items()
                },
            }
        )

    @classmethod
    def load(cls, path: Path) -> Graphs:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            {name: Lowering.model_validate(value) for name, value in raw["lowerings"].items()},
            {path: {n: from_json(r) for n, r in some.items()} for path, some in raw["recipes"].items()},
        )


def build_bundle(request: BuildRequest, progress: Progress | None = None) -> BuildReport:
    """Compile one checkpoint (or its config.json alone) into a bundle.

    Raises:
        UserError: for everything the user can mend; the output then stands as it stood before.
    """
    progress = progress or Quiet()
    started = time.monotonic()
    choice = select_engine(request.engine)
    if request.config_only:
        return _build_config_only(request, choice, progress, started)
    found = locate(request.source, revision=request.revision, progress=progress)
    with Checkpoint.open(found.folder) as checkpoint:
        with progress.stage("Checking the checkpoint"):
            _check_request(request, checkpoint.config, checkpoint.formats)
            carried.check_chat_files(found.folder)
            options = request.options(checkpoint.config, choice.engine)
            output = request.place(found.folder.name)
            data = content_key(checkpoint)
            graphs = graphs_key(checkpoint.config, checkpoint.formats, options, config_only=False)
            key = key_of([data, graphs, chat_key(found.folder)])
            if is_fresh(output, key):
                return _up_to_date(choice, output, checkpoint.notes, started)
            _check_place(output, request.force)
            memory = check_host_memory(checkpoint.config, options)
            checkpoint.validate_values()
        source = CheckpointInfo(
            source=str(found.source),
            revision=found.revision,
            identity=checkpoint.identity(),
            format=_format_of(checkpoint.formats),
        )
        cache = StageCache(cache_root(), request.cache)
        build = _Build(checkpoint.config, checkpoint.formats, options, cache, progress)
        with staged(output) as stage:
            recipes = checkpoint.recipes(context=options.context)
            program = build.graphs(recipes, graphs, stage)
            known = build.weights(program, checkpoint, key_of([data, graphs]), stage)
            carried.write_all(found.folder, stage)
            write_manifest(stage, checkpoint.config, options, program.lowerings, source, key, known)
            size = sum(p.stat().st_size for p in stage.rglob("*") if p.is_file())
    return BuildReport(
        output=output,
        engine=choice.engine,
        reason=choice.reason,
        up_to_date=False,
        made=tuple(build.made),
        reused=tuple(build.reused),
        notes=checkpoint.notes,
        bytes=size,
        seconds=time.monotonic() - started,
        memory=memory,
    )


def _build_config_only(
    request: BuildRequest, choice: Choice, progress: Progress, started: float
) -> BuildReport:
    path = locate_config(request.source, revision=request.revision, progress=progress).config
    parsed = read_config(path)
    formats = assumed_formats(parsed.model, parsed.quant)
    _check_request(request, parsed.model, formats)
    options = request.options(parsed.model, choice.engine)
    output = request.place(path.parent.name)
    graphs = graphs_key(parsed.model, formats, options, config_only=True)
    if is_fresh(output, graphs):
        return _up_to_date(choice, output, parsed.notes, started)
    _check_place(output, request.force)
    build = _Build(parsed.model, formats, options, StageCache(cache_root(), request.cache), progress)
    with staged(output) as stage:
        recipes = recipes_for_config(parsed.model, formats, tied=parsed.tied, context=options.context)
        build.bare_graphs(recipes, graphs, stage)
        (stage / "config.json").write_bytes(path.read_bytes())
        write_manifest(stage, parsed.model, options, {}, None, graphs, {})
        size = sum(p.stat().st_size for p in stage.rglob("*") if p.is_file())
    return BuildReport(
        output=output,
        engine=choice.engine,
        reason=choice.reason,
        up_to_date=False,
        made=tuple(build.made),
        reused=tuple(build.reused),
        notes=parsed.notes,
        bytes=size,
        seconds=time.monotonic() - started,
    )


def _check_request(request: BuildRequest, config: ModelConfig, formats: WeightFormats) -> None:
    options = request.options(config, "onnxruntime")
    check_mapping(config, formats, options.mapping)
    if request.fp8 and not formats.fp8:
        raise UserError(
            "--fp8 was given, but the checkpoint has no FP8 weights",
            where=str(request.source or "the checkpoint"),
            remedy="leave --fp8 away, or take the FP8 release",
        )


def _check_place(output: Path, force: bool) -> None:
    if output.exists() and not force:
        raise UserError(
            "something else stands at the output",
            where=str(output),
            remedy="choose another -o, or replace it with --force",
        )
    check_output(output)


def _up_to_date(choice: Choice, output: Path, notes: tuple[str, ...], started: float) -> BuildReport:
    return BuildReport(
        output=output,
        engine=choice.engine,
        reason=choice.reason,
        up_to_date=True,
        reused=("everything",),
        notes=notes,
        seconds=time.monotonic() - started,
    )


def _format_of(formats: WeightFormats) -> Any:
    kinds = {name.rpartition(".")[2] == "experts" for name in formats.fp8}
    return "bf16" if not kinds else "fp8" if kinds == {True, False} else "mixed"


@dataclass
class _Build:
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
        """Trace, shard, lower and cut; writes ``rank*/*.onnx``."""
        from mm2c.lower.onnxruntime import LOWERINGS

        title = f"graphs of {self.options.mapping.tp} rank(s)"
        if self.cache.fetch("graphs", key, stage) is not None:
            self.reused.append(title)
            graphs = Graphs.load(stage / STAGE_FILE)
        else:
            graphs = self._lowered(recipes, stage, list(LOWERINGS))
            (stage / STAGE_FILE).write_text(graphs.dump(), encoding="utf-8")
            names = [p.relative_to(stage).as_posix() for p in stage.glob("rank*/*.onnx")]
            self.cache.store("graphs", key, stage, [*names, STAGE_FILE])
            self.made.append(title)
        (stage / STAGE_FILE).unlink()
        return graphs

    def _lowered(self, recipes: dict[str, Recipe], stage: Path, names: list[str]) -> Graphs:
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
        with self.progress.stage("Sharding and lowering", tp * len(names)) as bar:
            for rank in range(tp):
                ranks.append(shard(whole, self.config, self.options.mapping.at(rank)))
                for name in names:
                    programs[rank, name] = cut(LOWERINGS[name](ranks[rank]))
                    bar.advance()
        jobs = [
            WeightJob(stage / f"rank{rank}" / WEIGHTS[name], program.recipes)
            for (rank, name), program in programs.items()
        ]
        layouts = dict(zip(programs, lay_out(jobs, shared_order(jobs)), strict=True))
        found: dict[str, list[RankProgram]] = {name: [] for name in names}
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
