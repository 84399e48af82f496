"""A step of one TensorRT plan with inputs made up for it: what tools that compare runtimes are fed with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.manifest_tensorrt import (
    Plan,
    PlanRank,
    PlanTensor,
    Profile,
    TensorRTProgram,
    bound_name,
)
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.safetensors_file import read_header, tensors_of

Array = np.ndarray[Any, Any]
DTYPES: dict[str, np.dtype[Any]] = {
    **NUMPY,
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}
FIRST_PAST, NEXT_PAST = 5, 11  # tokens before the step in row 0, and so many more in each further row


@dataclass(frozen=True)
class Step:
    """One run of ``plan`` for ``rank`` as the stage that begins with ``first_layer``: ``rows`` of ``tokens`` each."""

    bundle: Path
    manifest: Manifest
    program: TensorRTProgram
    plan: Plan
    rank: PlanRank
    profile: Profile
    first_layer: int
    rows: int
    tokens: int
    seed: int = 0

    @property
    def past(self) -> list[int]:
        """Tokens before the step, by row."""
        room = self.manifest.limits.context - self.tokens
        return [min(FIRST_PAST + NEXT_PAST * row, room) for row in range(self.rows)]

    @property
    def symbols(self) -> dict[str, int]:
        page = self.program.kv.page or 1
        longest = -(-(max(self.past) + self.tokens) // page)
        return {
            "batch": self.rows,
            "seq": self.tokens,
            "pages_of_row": longest,
            "pages": self.rows * longest,
        }

    def shape(self, tensor: PlanTensor) -> tuple[int, ...]:
        return tuple(self.symbols[size] if isinstance(size, str) else size for size in tensor.shape)

    @property
    def varying(self) -> dict[str, tuple[int, ...]]:
        """Shapes in this step of the inputs that have another one in other steps."""
        return {
            tensor.name: self.shape(tensor)
            for tensor in self.plan.tensors
            if tensor.mode == "input" and any(isinstance(size, str) for size in tensor.shape)
        }


def choose(
    bundle: Path,
    plan: str,
    *,
    profile: int = 0,
    rank: int = 0,
    first_layer: int | None = None,
    rows: int = 0,
    tokens: int = 0,
    seed: int = 0,
) -> Step:
    """``first_layer`` None: the first stage of the rank that runs the plan with this profile. ``rows`` and ``tokens``
    0: two, and four, where the profile allows.

    Raises ValueError where the bundle has no such plan, or the profile does not cover the step.
    """
    manifest = read_manifest(bundle)
    program = manifest.tensorrt
    names = [one.name for one in program.plans] if program else []
    if program is None or plan not in names or not 0 <= rank < len(program.ranks):
        raise ValueError(
            f"no plan {plan!r} of a rank {rank} in {bundle}: it has {', '.join(names) or 'none'}"
        )
    index = names.index(plan)
    found = program.plans[index]
    if not 0 <= profile < len(found.profiles):
        raise ValueError(f"{plan} has profiles 0 to {len(found.profiles) - 1}, not {profile}")
    stages = [
        stage.first_layer
        for run in program.ranks[rank].runs
        for stage in run.stages
        if (stage.plan, stage.profile) == (index, profile)
    ]
    if not stages or first_layer not in (None, *stages):
        raise ValueError(
            f"rank {rank} runs {plan} with profile {profile} from layers {stages}, not {first_layer}"
        )
    sizes = found.profiles[profile]
    rows = rows or min(max(2, sizes.batch[0]), sizes.batch[2])
    tokens = tokens or min(max(4, sizes.seq[0]), sizes.seq[2], manifest.limits.context)
    if not sizes.covers(rows, tokens):
        raise ValueError(f"{rows} rows × {tokens} tokens are outside profile {sizes.name} of {plan}")
    first = stages[0] if first_layer is None else first_layer
    return Step(bundle, manifest, program, found, program.ranks[rank], sizes, first, rows, tokens, seed)


def inputs_of(step: Step) -> dict[str, Array]:
    """Every input of the plan, in the types that it declares (e4m3 and bf16 by ml_dtypes). Random but for the weights;
    these too where the bundle has none."""
    rng = np.random.default_rng(step.seed)
    stored = _stored(step.bundle / step.rank.weights)
    found: dict[str, Array] = {}
    for tensor in step.plan.tensors:
        if tensor.mode == "input":
            name = bound_name(tensor.name, step.first_layer)
            found[tensor.name] = _value(step, tensor, stored.get(name), rng)
    return found


def _stored(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file, mapped, not read; none where there is no file."""
    if not path.is_file():
        return {}
    data = np.memmap(path, np.uint8, "r")
    found = {}
    for name, entry in tensors_of(read_header(path), path.name).items():
        if entry.dtype in NUMPY:
            values = data[entry.offset : entry.offset + entry.nbytes].view(NUMPY[entry.dtype])
            found[name] = values.reshape(entry.shape)
    return found


def _value(step: Step, tensor: PlanTensor, stored: Array | None, rng: np.random.Generator) -> Array:
    shape, dtype = step.shape(tensor), DTYPES[tensor.dtype]
    if tensor.kind == "weight" and stored is not None:
        if stored.shape != shape or stored.dtype != dtype:
            raise ValueError(
                f"{tensor.name}: the weights have {stored.dtype} {stored.shape}, not {dtype} {shape}"
            )
        return stored
    if tensor.kind == "constant":
        return np.array(step.rank.constants[tensor.name], dtype)
    if tensor.kind == "step":
        return _of_step(step, tensor.name, shape, rng).astype(dtype)
    return _random(step, tensor, shape, rng).astype(dtype)


def _of_step(step: Step, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """All rows have as many new tokens as the step is wide: none is padding. A row's pages are in no order."""
    if name == "input_ids":
        return rng.integers(0, step.manifest.model.vocab, shape)
    if name == "block_table":
        return rng.permutation(step.symbols["pages"])[: int(np.prod(shape))].reshape(shape)
    return np.array(step.past if name == "past_len" else [step.tokens] * step.rows)


def _random(step: Step, tensor: PlanTensor, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Hidden states and caches of scale 1, caches where tokens are; weights such that a layer keeps that scale."""
    if tensor.kind == "cache":
        held = np.zeros(shape, np.float32)
        if step.program.kv.page:
            held[...] = rng.standard_normal(shape, np.float32)
        for row, past in enumerate([] if step.program.kv.page else step.past):
            held[row, :, :past] = rng.standard_normal((shape[1], past, shape[3]), np.float32)
        return held
    if tensor.kind == "hidden":
        return rng.standard_normal(shape, np.float32)
    if "norm" in tensor.name or tensor.name.startswith("rope."):
        return rng.uniform(0.8, 1.0, shape).astype(np.float32)
    if tensor.name.endswith("_scale_inv"):
        return np.full(shape, 1 / 64, np.float32)
    spread = 64.0 if tensor.dtype == "e4m3" else 1.0
    return rng.standard_normal(shape, np.float32) * np.float32(spread / np.sqrt(shape[-1]))
