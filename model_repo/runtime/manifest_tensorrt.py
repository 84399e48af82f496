"""The manifest's part on TensorRT: plans, what they are bound to, and the stages of which a rank's model consists.

A plan holds a few decoder layers (the first one the embedding too, the last one the head), and its weights are inputs.
So one plan serves every stage and every rank whose graphs are equal: it is run once for each of them, with other
tensors bound.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

Range = tuple[int, int, int]  # smallest, the one that is optimised for, largest

_LAYER = re.compile(r"^(layers|k_cache|v_cache|k_cache_out|v_cache_out)\.(\d+)(.*)$")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PlanTensor(_Frozen):
    """An input or output of a plan. ``shape`` holds sizes and the symbols "batch" (rows of the step), "seq" (tokens of
    each), "pages_of_row" and "pages".

    ``kind``: "step" input_ids i64[batch, seq], past_len and new_len i32[batch], block_table i32[batch, pages_of_row];
    "cache" k_cache.{l}, v_cache.{l} and the outputs k_cache_out.{l}, v_cache_out.{l}, which are bound to the same
    memory; "weight" a tensor of the rank's weights; "constant" one of the rank's ``constants``; "hidden" what a stage
    hands to the next one, input ``hidden.{i}`` and output ``hidden_out.{i}``; "logits" the last stage's output.
    """

    name: str
    mode: Literal["input", "output"]
    kind: Literal["step", "cache", "weight", "constant", "hidden", "logits"]
    dtype: Literal["f32", "bf16", "f16", "i32", "i64", "bool", "e4m3"]
    shape: list[int | str]


class Profile(_Frozen):
    """Ranges of "batch" and "seq" that a plan runs with; in the plan's order."""

    name: str
    batch: Range
    seq: Range

    def covers(self, batch: int, seq: int) -> bool:
        return self.batch[0] <= batch <= self.batch[2] and self.seq[0] <= seq <= self.seq[2]


class Plan(_Frozen):
    """``graph``: the ONNX file that it is built from; ``wide``: the same graph with f32 activations, which ONNX Runtime
    runs; ``plan``: the serialised engine, None as long as it is to be built on the machine that serves it. Paths in the
    bundle. ``layers``: decoder layers in it. ``scratch``: bytes of device memory that it needs while it runs, by the
    builder; 0 where that is not known."""

    name: str
    graph: str
    wide: str
    plan: str | None
    layers: int
    profiles: list[Profile]
    tensors: list[PlanTensor]
    scratch: int = 0


class PlanStage(_Frozen):
    """One run of a plan: ``plan`` and ``profile`` are indices; its layer i is layer ``first_layer`` + i of the
    model."""

    plan: int
    profile: int
    first_layer: int


class PlanRun(_Frozen):
    """The model for steps of certain sizes: its stages in order. ``profile`` covers the steps that it takes."""

    profile: Profile
    stages: list[PlanStage]


class PlanRank(_Frozen):
    """``weights``: path of the tensors in the bundle. ``constants``: the integers that differ between ranks, i64[n] by
    name. ``runs``: the first one whose profile covers a step takes it."""

    rank: int
    weights: str
    constants: dict[str, list[int]]
    runs: list[PlanRun]


class PlanKv(_Frozen):
    """``page`` 0: rows, k_cache.{l} and v_cache.{l} of [rows, kv_heads, context, head_dim]; otherwise pages,
    [pages, page, kv_heads, head_dim]. Of one rank, every rank has the same."""

    layers: int
    kv_heads: int
    head_dim: int
    page: int
    dtype: Literal["bf16", "fp8"]


class PlanPlugins(_Frozen):
    """The plugin library that the plans' nodes name: paths in the bundle, the library's own version, and the creators
    that the graphs need."""

    library: str
    host: str
    version: str
    abi: int
    creators: list[str]


class TensorRTProgram(_Frozen):
    """``version``: of the library that built the plans, "" where none was built yet; ``target``: compute capabilities
    ("12.0") that they were built for, empty: those of the machine that finishes the bundle. ``head``: as in
    ``CudaProgram``."""

    version: str
    target: list[str]
    plans: list[Plan]
    ranks: list[PlanRank]
    kv: PlanKv
    head: Literal["gather", "candidates"]
    plugins: PlanPlugins | None = None

    @property
    def deferred(self) -> bool:
        """Whether plans are still to be built."""
        return any(plan.plan is None for plan in self.plans)


def bound_name(name: str, first_layer: int) -> str:
    """The model's name of what a plan calls ``name``: "layers.2.mlp.gate.weight" of a stage that begins with layer 8
    is "model.layers.10.mlp.gate.weight", "k_cache.2" is "k_cache.10"; names without a layer are the model's own."""
    found = _LAYER.match(name)
    if found is None:
        return name
    kind, layer, rest = found[1], int(found[2]) + first_layer, found[3]
    return f"{'model.' if kind == 'layers' else ''}{kind}.{layer}{rest}"


def plan_name(name: str, first_layer: int) -> str:
    """The other way round: how a plan whose stage begins with ``first_layer`` calls a tensor of the model."""
    found = _LAYER.match(name.removeprefix("model."))
    if found is None or (found[1] == "layers") != name.startswith("model."):
        return name
    return f"{found[1]}.{int(found[2]) - first_layer}{found[3]}"
