"""Where the stages meet: checkpoint → trace → passes → lower → engine → weights → bundle."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mm2c.bundle import carried
from mm2c.bundle.cache import StageCache, cache_root, key_of
from mm2c.bundle.chat_files import check_chat_files
from mm2c.bundle.fresh import difference_of
from mm2c.bundle.keys import chat_key, content_key, graphs_key
from mm2c.bundle.manifest import write_manifest
from mm2c.bundle.memory import card_note, find_card, write_memory
from mm2c.bundle.place import check_place, is_bundle
from mm2c.bundle.polygraphy_files import write_polygraphy
from mm2c.bundle.staging import check_output, staged, sweep
from mm2c.checkpoint import (
    Checkpoint,
    assumed_formats,
    converted,
    converted_formats,
    locate,
    locate_config,
    read_config,
    recipes_for_config,
)
from mm2c.checkpoint.family import with_family_note
from mm2c.config import PAGE, TENSORRT, BuildOptions, Mapping, ModelConfig, WeightFormats
from mm2c.engine.cuda_limits import check_cuda
from mm2c.engine.plugin_library import PluginLibrary, find_library
from mm2c.engine.select import Choice, select_engine
from mm2c.engine.tensorrt.preflight import check_tensorrt_machine
from mm2c.engine.tensorrt_limits import check_request, check_tensorrt
from mm2c.errors import UserError
from mm2c.graphs import Graphs
from mm2c.host_memory import check_host_memory
from mm2c.memory import MemoryPlan, plan_memory
from mm2c.passes.legality import check_mapping
from mm2c.plans import PlanBuild, prepare_plans
from mm2c.progress import Progress, Quiet
from mm2c.request import PAGED, BuildReport, BuildRequest
from mm2c.stages import Stages
from mm2c.version import source_digest
from mm2c.weights.shards import stamps_of
from mm2c_runtime.checksums import remember_contents
from mm2c_runtime.manifest import CheckpointInfo

__all__ = ["BuildReport", "BuildRequest", "build_bundle"]


def build_bundle(request: BuildRequest, progress: Progress | None = None) -> BuildReport:
    """Compile one checkpoint (or its config.json alone) into a bundle.

    Raises:
        UserError: for everything the user can mend; the output then stands as it stood before.
    """
    return _Build(request, progress or Quiet()).run()


class _Build:
    def __init__(self, request: BuildRequest, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.started = time.monotonic()
        self.choice: Choice = select_engine(request.engine, runs=not request.config_only)
        self.library: PluginLibrary | None = None  # that the bundle carries
        self.cache = StageCache(cache_root(), request.cache)
        self.card = find_card(request.gpu) if request.gpu else None  # that the bundle is for
        self.said: tuple[str, ...] = ()  # about that card

    def run(self) -> BuildReport:
        return self._config_only() if self.request.config_only else self._whole()

    def _whole(self) -> BuildReport:
        request = self.request
        found = locate(request.source, revision=request.revision, progress=self.progress)
        with Checkpoint.open(found.folder) as checkpoint:
            stamps = stamps_of(checkpoint)
            config = checkpoint.config
            notes = with_family_note(checkpoint.notes, config, found.folder)
            with self.progress.stage("Checking the checkpoint"):
                options, formats = self._checked_options(config, checkpoint.formats)
                check_chat_files(found.folder)
                output = request.place(found.folder)
                sweep(output, spare=True)
                check_place(output, found.folder, force=request.force)
                data = content_key(checkpoint)
                plans = prepare_plans(request, options, formats)
                self.library = (
                    plans.plugins if plans else find_library() if options.engine == "cuda" else None
                )
                plugins = self.library.digest if self.library else ""
                graphs = graphs_key(
                    config, formats, options, tied=checkpoint.tied, config_only=False, plugins=plugins
                )
                # without a copy of the weights the bundle is of this folder, not of its content alone
                place = str(found.folder.resolve()) if options.weights == "checkpoint" else ""
                key = key_of([data, graphs, chat_key(found.folder), place, plans.key if plans else ""])
                if self._is_done(output, key):
                    sweep(output)
                    return self._report(output, notes)
                check_output(output)
                host = check_host_memory(config, options) if options.engine == "onnxruntime" else None
                checkpoint.validate_values()
            source = CheckpointInfo(
                source=found.source if found.revision else str(found.folder.resolve()),
                revision=found.revision,
                identity=checkpoint.identity(),
                format=_format_of(checkpoint.formats),
                content=checkpoint.content(),
                folder=str(found.folder.resolve()),
            )
            stages = Stages(
                config, formats, options, self.cache, self.progress, self.library, request.check_shards
            )
            weights = key_of([data, graphs])
            with staged(output, weights) as stage:
                recipes, _ = converted(
                    checkpoint.recipes(context=options.context), checkpoint.formats, options.format, config
                )
                program = stages.graphs(recipes, graphs, stage)
                stages.prove(program.recipes, recipes, stage)
                known = stages.weights(program, checkpoint, weights, stage, stamps)
                error = stages.quantization(checkpoint, key_of([data, source_digest()]), stage)
                carried.write_all(found.folder, stage)
                if self.library:
                    carried.write_plugins(self.library, stage)
                plan = write_memory(stage, self.plan, options, host)
                if plans:
                    program = self._planned(plans, stages, program, stage)
                manifest = write_manifest(stage, config, options, program, source, key, known)
                size = _bytes_in(stage)
            remember_contents(output, manifest.files)
            return self._report(output, notes, stages, size, host or plan["gpu"], error)

    def _config_only(self) -> BuildReport:
        request = self.request
        path = locate_config(request.source, revision=request.revision, progress=self.progress).config
        parsed = read_config(path)
        notes = with_family_note(parsed.notes, parsed.model, path.parent)
        stored = assumed_formats(parsed.model, parsed.quant)
        options, formats = self._checked_options(parsed.model, stored)
        output = request.place(path.parent)
        sweep(output)
        check_place(output, path.parent, force=request.force)
        graphs = graphs_key(parsed.model, formats, options, tied=parsed.tied, config_only=True)
        plans = prepare_plans(request, options, formats)
        self.library = plans.plugins if plans else None
        key = key_of([graphs, plans.key]) if plans else graphs
        if self._is_done(output, key):
            return self._report(output, notes)
        check_output(output)
        stages = Stages(parsed.model, formats, options, self.cache, self.progress)
        with staged(output) as stage:
            recipes, _ = converted(
                recipes_for_config(parsed.model, stored, tied=parsed.tied, context=options.context),
                stored,
                options.format,
                parsed.model,
            )
            (stage / "config.json").write_bytes(path.read_bytes())
            program = None
            if plans:
                program = stages.graphs(recipes, graphs, stage, bare=True)
                if self.library:
                    carried.write_plugins(self.library, stage)
                program = self._planned(plans, stages, program, stage)
            else:
                stages.bare_graphs(recipes, graphs, stage)
            plan = write_memory(stage, self.plan, options, None)
            write_manifest(stage, parsed.model, options, program, None, key, {})
            size = _bytes_in(stage)
        return self._report(output, notes, stages, size, plan["gpu"])

    def _planned(self, plans: PlanBuild, stages: Stages, graphs: Graphs, stage: Path) -> Graphs:
        """The graphs with their plans, built or left for later."""
        assert graphs.tensorrt is not None
        program, made = plans.build(graphs.tensorrt, stage, self.cache, self.progress)
        write_polygraphy(stage, program)
        (stages.made if made else stages.reused).append(plans.title(program))
        return replace(graphs, tensorrt=program)

    def _checked_options(
        self, config: ModelConfig, stored: WeightFormats
    ) -> tuple[BuildOptions, WeightFormats]:
        """The options, and the formats of the linears in the bundle."""
        self._settle_engine(config)
        options = self.request.options(config, self.choice.engine)
        formats = converted_formats(config, stored, options.format)
        check_mapping(config, options.mapping)
        if options.engine in TENSORRT:
            check_tensorrt(config, formats, options)
        self.plan = self._plan(config, formats, options)
        return options, formats

    def _settle_engine(self, config: ModelConfig) -> None:
        """The engine that computes this model: ``auto`` takes another than this machine's best where that cannot."""
        request, engine = self.request, self.choice.engine
        mapping = Mapping(request.tp, request.ep, request.dp)
        if engine == "tensorrt" and request.engine == "auto":
            self._settle_plans(mapping)
        if self.choice.engine not in ("cuda", "tensorrt"):
            return
        try:
            check_cuda(config, mapping)
        except UserError as error:
            if request.engine != "auto":
                raise
            other = select_engine("onnxruntime", runs=not request.config_only)
            self.choice = Choice(other.engine, f"{self.choice.reason}, but {error.what}")

    def _settle_plans(self, mapping: Mapping) -> None:
        """cuda instead of tensorrt where that has no graph for the request, or lacks something on this machine."""
        try:
            check_request(BuildOptions(mapping, "tensorrt", weights=self.request.weights_place()))
            check_tensorrt_machine(ranks=mapping.ranks, defer=self.request.defer_plan)
        except UserError as error:
            self.choice = Choice(
                "cuda", f"{self.choice.reason}, but {error.what.splitlines()[0].rstrip(':')}"
            )

    def _is_done(self, output: Path, key: str) -> bool:
        """Whether ``output`` is what this build would make. Another or an altered bundle needs --force."""
        if not is_bundle(output):
            return False  # nothing there, or an empty folder
        difference = difference_of(output, key)
        if difference and not self.request.force:
            raise UserError(
                f"a bundle stands at the output already: {difference}",
                where=str(output),
                remedy="replace it with --force, or choose another -o",
            )
        return not difference

    def _plan(self, config: ModelConfig, formats: WeightFormats, options: BuildOptions) -> MemoryPlan:
        """What each rank will hold on a GPU; where the build is for one kind of them, whether that fits is said."""
        gpu, paged = options.engine != "onnxruntime", options.engine in PAGED
        plan = plan_memory(
            config,
            formats,
            options.mapping,
            context=options.context,
            rows=options.max_rows,
            chunk=options.prefill_chunk,
            weight_dtype="cuda" if gpu else "fp8",
            kv_dtype=options.kv_dtype if gpu else "bf16",
            page=PAGE if paged else 1,
            engine=options.engine,
        )
        if self.card is not None:
            self.said = (card_note(self.card, plan, options),)
            self.progress.note(self.said[0])
        return plan

    def _report(
        self,
        output: Path,
        notes: tuple[str, ...],
        stages: Stages | None = None,
        size: int = 0,
        memory: dict[str, Any] | None = None,
        quantization: str = "",
    ) -> BuildReport:
        """``stages`` None: nothing had to be done."""
        return BuildReport(
            output=output,
            engine=self.choice.engine,
            reason=self.choice.reason,
            up_to_date=stages is None,
            made=tuple(stages.made) if stages else (),
            reused=tuple(stages.reused) if stages else ("everything",),
            notes=notes + ((self.library.note(),) if self.library else ()) + self.said,
            bytes=size,
            seconds=time.monotonic() - self.started,
            memory=memory or {},
            quantization=quantization,
        )


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _format_of(formats: WeightFormats) -> Any:
    kinds = {name.rpartition(".")[2] == "experts" for name in formats.fp8}
    return "bf16" if not kinds else "fp8" if kinds == {True, False} else "mixed"
