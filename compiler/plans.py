"""The plan stage of a build: TensorRT plans of the graphs, or their place in the bundle until they are built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mm2c.bundle.cache import StageCache, key_of
from mm2c.config import TENSORRT, BuildOptions, WeightFormats
from mm2c.engine.plugin_library import ABI, HOST, LIBRARY, PluginLibrary
from mm2c.engine.tensorrt.library import Library, find_library
from mm2c.errors import UserError
from mm2c.progress import Progress
from mm2c.request import BuildRequest
from mm2c_runtime.manifest_tensorrt import PlanPlugins, TensorRTProgram


@dataclass(frozen=True)
class PlanBuild:
    """``library`` None: the plans are deferred. ``target``: compute capabilities, empty for this machine's own.
    ``plugins``: whose creators the graphs name, None for an engine without plugins. ``context``: tokens of a row."""

    engine: str
    library: Library | None
    target: tuple[str, ...]
    plugins: PluginLibrary | None
    context: int

    @property
    def key(self) -> str:
        """Of what decides the plans beside their graphs."""
        return key_of([self.library.version if self.library else "deferred", list(self.target)])

    def build(
        self, program: TensorRTProgram, stage: Path, cache: StageCache, progress: Progress
    ) -> tuple[TensorRTProgram, bool]:
        """The program with its plans in ``stage``, where its graphs and plugins are, and whether any of them was made,
        not found in the cache.

        Raises:
            UserError: the plugin library does not take a node, or the builder fails.
        """
        changes = {"target": list(self.target), "plugins": self._plugins(stage, program)}
        program = program.model_copy(update=changes)
        if self.library is None:
            return program, True
        from mm2c.engine.tensorrt.build import build_program

        return build_program(program, stage, self.library, self.target, cache, progress, context=self.context)

    def title(self, program: TensorRTProgram) -> str:
        """What the stage made, for the report."""
        count = f"{len(program.plans)} plans" if len(program.plans) > 1 else "1 plan"
        return f"graphs of {count}, deferred" if self.library is None else f"{count} ({self.library.name})"

    def _plugins(self, stage: Path, program: TensorRTProgram) -> PlanPlugins | None:
        if self.plugins is None:
            return None
        import onnx

        from mm2c.engine.tensorrt.preflight import check_plugins
        from mm2c.lower.plan_graph import creators_of

        graphs = [stage / plan.graph for plan in program.plans]
        check_plugins(stage / LIBRARY, graphs, self.library, version=self.plugins.version)
        creators = set().union(*(creators_of(onnx.load(graph)) for graph in graphs))
        return PlanPlugins(
            library=LIBRARY, host=HOST, version=self.plugins.version, abi=ABI, creators=sorted(creators)
        )


def prepare_plans(request: BuildRequest, options: BuildOptions, formats: WeightFormats) -> PlanBuild | None:
    """What the plans will be built with; None for an engine without plans.

    Raises:
        UserError: a target that the library does not build for, or something that it needs is missing here.
    """
    if options.engine not in TENSORRT:
        if request.target or request.defer_plan:
            flag = "--target" if request.target else "--defer-plan"
            raise UserError(
                f"the {options.engine} engine has no plans",
                where=flag,
                remedy=f"leave {flag} out, or --engine {' or '.join(TENSORRT)}",
            )
        return None
    from mm2c.engine.tensorrt.targets import resolve_target

    target = resolve_target(options.engine, request.target, fp8=bool(formats.fp8))
    if options.engine == "tensorrt":
        from mm2c.engine.tensorrt.preflight import check_tensorrt_machine

        ready = check_tensorrt_machine(ranks=options.mapping.ranks, defer=request.defer_plan)
        return PlanBuild(options.engine, ready.module, target, ready.plugins, options.context)
    library = None if request.defer_plan else find_library(options.engine)
    return PlanBuild(options.engine, library, target, None, options.context)
