"""The graph stage for TensorRT: trace in bf16, stages of a few layers, one graph for all stages that are equal."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from mm2c.config import PAGE, BuildOptions, ModelConfig, WeightFormats
from mm2c.engine.cuda import head_of, kv_type, write_graph
from mm2c.graphs import Graphs
from mm2c.lower.cuda import lower_cuda
from mm2c.lower.divide_blocks import divide_single_blocks
from mm2c.lower.gather_first_axis import gather_along_first_axis
from mm2c.lower.local_head import lower_to_local_head
from mm2c.lower.native import MoeForm
from mm2c.lower.plan_graph import RANK_CONSTANTS, PlanGraph, Sizes, plan_graph
from mm2c.lower.program import LoweredRank
from mm2c.lower.rows import lower_rows
from mm2c.lower.stages import cut_stages
from mm2c.lower.widen import widened
from mm2c.passes.shard import shard
from mm2c.progress import Progress
from mm2c.trace import trace
from mm2c.weights.layout import WeightJob, lay_out, shared_order
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.manifest_tensorrt import (
    Plan,
    PlanKv,
    PlanRank,
    PlanRun,
    PlanStage,
    Profile,
    TensorRTProgram,
)
from mm2c_runtime.weights.recipe import Recipe

WEIGHTS = "weights.safetensors"
FOLDER = "plans"
GATHERED_TOKENS = (
    16  # experts are gathered for so many tokens; beyond, all of them are dequantised: less scratch
)
ACTIVATION = ir.DataType.BFLOAT16


@dataclass(frozen=True)
class Variant:
    """One set of plans: the form of their experts, and the steps that they take."""

    name: str
    form: MoeForm
    profiles: tuple[Profile, ...]


def variants(options: BuildOptions) -> list[Variant]:
    """tensorrt-rtx has no plugins: few rows gather their experts' weights, more rows and prefill chunks run all of
    them. tensorrt has one set of plans with a profile for decode and one for prefill; the form is that of the plugins'
    substitutes where a graph is checked without the library."""
    rows, chunk = options.max_rows, options.prefill_chunk
    prefill = Profile(name="prefill", batch=(1, 1, 1), seq=(1, chunk, chunk))
    if options.engine == "tensorrt":
        decode = Profile(name="decode", batch=(1, rows, rows), seq=(1, 1, 1))
        return [Variant("step", "dense", (decode, prefill))]
    few = min(rows, GATHERED_TOKENS)
    gathered = Profile(name="decode", batch=(1, few, few), seq=(1, 1, 1))
    many: tuple[Profile, ...] = ()
    if rows > few:
        many = (Profile(name="decode.many", batch=(few + 1, rows, rows), seq=(1, 1, 1)),)
    return [Variant("decode", "gather", (gathered,)), Variant("prefill", "dense", (*many, prefill))]


@dataclass
class _Plans:
    """Distinct graphs, by their content; files are written as they are found."""

    stage: Path
    found: dict[str, int] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)

    def of(self, graph: PlanGraph, variant: Variant) -> int:
        """The index of the plan; its graph is written the first time."""
        data = graph.model.SerializeToString(deterministic=True)
        key = sha256(variant.name.encode() + data).hexdigest()
        if key not in self.found:
            number = sum(plan.name.startswith(f"{variant.name}.") for plan in self.plans)
            name = f"{variant.name}.{number}"
            paths = {kind: f"{FOLDER}/{name}.{kind}" for kind in ("onnx", "f32.onnx")}
            (self.stage / FOLDER).mkdir(exist_ok=True)
            (self.stage / paths["onnx"]).write_bytes(data)
            wide = widened(graph.model).SerializeToString(deterministic=True)
            (self.stage / paths["f32.onnx"]).write_bytes(wide)
            self.found[key] = len(self.plans)
            self.plans.append(
                Plan(
                    name=name,
                    graph=paths["onnx"],
                    wide=paths["f32.onnx"],
                    plan=None,
                    layers=graph.layers,
                    profiles=list(variant.profiles),
                    tensors=graph.tensors,
                )
            )
        return self.found[key]


def write_graphs(
    config: ModelConfig,
    formats: WeightFormats,
    options: BuildOptions,
    recipes: dict[str, Recipe],
    stage: Path,
    progress: Progress,
) -> Graphs:
    """``plans/*.onnx`` and ``rank*/model.onnx``; plans are built from them later."""
    with progress.stage("Tracing transformers' module"):
        whole = trace(config, formats, options, recipes, activation="bf16")
    plans, lowered = _Plans(stage), []
    with progress.stage("Sharding and lowering", options.mapping.ranks) as bar:
        for rank in range(options.mapping.ranks):
            lowered.append(_lowered(shard(whole, config, options.mapping.at(rank)), config, options))
            bar.advance()
    jobs = [WeightJob(stage / f"rank{rank}" / WEIGHTS, one.recipes) for rank, one in enumerate(lowered)]
    layouts = lay_out(jobs, shared_order(jobs))
    ranks = []
    with progress.stage("Writing graphs", len(lowered)) as bar:
        for rank, (one, layout) in enumerate(zip(lowered, layouts, strict=True)):
            ranks.append(_rank(one, rank, config, options, plans))
            places = {n: (e.dtype, e.shape, e.offset, e.nbytes) for n, e in layout.entries.items()}
            (stage / f"rank{rank}").mkdir(exist_ok=True)
            write_graph(one, stage / f"rank{rank}" / "model.onnx", places)
            bar.advance()
    program = TensorRTProgram(
        version="",
        target=[],
        plans=plans.plans,
        ranks=ranks,
        kv=_kv(config, options),
        head="candidates" if _cuts_head(config, options) else "gather",
    )
    files = {job.path.relative_to(stage).as_posix(): job.recipes for job in jobs}
    return Graphs(files, tensorrt=program)


def _cuts_head(config: ModelConfig, options: BuildOptions) -> bool:
    return head_of(config, options) == "candidates"


def _lowered(own: RankGraph, config: ModelConfig, options: BuildOptions) -> LoweredRank:
    paged = options.engine == "tensorrt"
    lowered = lower_cuda(own, kv_type(options)) if paged else lower_rows(own)
    if _cuts_head(config, options):
        lower_to_local_head(lowered)
    divide_single_blocks(lowered)
    gather_along_first_axis(lowered, axes=3 if options.all_logits else 2)
    return lowered


def _rank(
    lowered: LoweredRank, rank: int, config: ModelConfig, options: BuildOptions, plans: _Plans
) -> PlanRank:
    constants = {
        name: [int(x) for x in value.const_value.numpy().reshape(-1)]
        for name, value in lowered.model.graph.initializers.items()
        if name in RANK_CONSTANTS and value.const_value is not None
    }
    width = -(-config.vocab // options.mapping.tp) if _cuts_head(config, options) else config.vocab
    logits: tuple[int | str, ...] = ("batch", "seq", width) if options.all_logits else ("batch", width)
    page = PAGE if options.engine == "tensorrt" else 0
    sizes = Sizes(config.hidden, options.context, page, logits)
    runs = []
    for variant in variants(options):
        stages = []
        for part in cut_stages(lowered, options.layers_per_plan):
            first = part.first_layer
            index = plans.of(plan_graph(part, sizes, variant.form, ACTIVATION), variant)
            stages.append((index, first))
        for number, profile in enumerate(variant.profiles):
            placed = [PlanStage(plan=i, profile=number, first_layer=first) for i, first in stages]
            runs.append(PlanRun(profile=profile, stages=placed))
    return PlanRank(rank=rank, weights=f"rank{rank}/{WEIGHTS}", constants=constants, runs=runs)


def _kv(config: ModelConfig, options: BuildOptions) -> PlanKv:
    dtype: Literal["bf16", "fp8"] = "fp8" if options.kv_dtype == "fp8" else "bf16"
    return PlanKv(
        layers=config.layers,
        kv_heads=options.mapping.kv_heads_of_rank(config.kv_heads),
        head_dim=config.head_dim,
        page=PAGE if options.engine == "tensorrt" else 0,
        dtype=dtype,
    )
