"""A stage's tensors for both sides of a comparison: as they are stored, and with f32 for bf16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest_tensorrt import PlanTensor, bound_name

if TYPE_CHECKING:
    import onnxruntime as ort
    from torch import Tensor

    from mm2c.verify.network_stage import StagePlan
    from mm2c.verify.tensor_source import TensorSource
    from mm2c_runtime.manifest_tensorrt import TensorRTProgram

Array = np.ndarray[Any, Any]
E4M3 = 17  # ONNX's number of float8e4m3fn
NUMPY: dict[str, Any] = {
    "f32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
    "i32": np.int32,
    "i64": np.int64,
    "bool": np.bool_,
    "e4m3": ml_dtypes.float8_e4m3fn,
}


@dataclass(frozen=True)
class StageTensors:
    """Of one rank, by the plan's names. ``stored``: what a network is fed; ``wide``: what the wide graph is;
    ``arrays``: the first as numpy has them."""

    stored: dict[str, Tensor]
    wide: dict[str, ort.OrtValue]
    arrays: dict[str, Array]


def read_stage_tensors(
    tensors: Sequence[PlanTensor], source: TensorSource, constants: Mapping[str, list[int]], first_layer: int
) -> StageTensors:
    """Raises BundleError where a tensor is missing or has another dtype or shape than the plan reads."""
    from mm2c.verify.tensor_source import read_whole

    arrays: dict[str, Array] = {}
    for tensor in tensors:
        if tensor.mode == "input" and tensor.kind == "weight":
            arrays[tensor.name] = read_whole(source, bound_name(tensor.name, first_layer))
        elif tensor.mode == "input" and tensor.kind == "constant":
            if tensor.name not in constants:
                raise BundleError(f"a rank has no constant {tensor.name}", where="manifest.json")
            arrays[tensor.name] = np.array(constants[tensor.name], NUMPY[tensor.dtype])
        else:
            continue
        _check(tensor, arrays[tensor.name], bound_name(tensor.name, first_layer))
    return StageTensors(
        {name: torch_of(value) for name, value in arrays.items()},
        {name: ort_of(value) for name, value in arrays.items()},
        arrays,
    )


class TensorsOf:
    """A stage's tensors of every rank, read once for plans that read the same ones: their names and types decide."""

    def __init__(self, program: TensorRTProgram, sources: Sequence[TensorSource], first_layer: int) -> None:
        self._program, self._sources, self._first = program, sources, first_layer
        self._known: dict[tuple[int, frozenset[str]], StageTensors] = {}

    def of(self, plans: Sequence[StagePlan]) -> list[StageTensors]:
        found = []
        for rank, plan in enumerate(plans):
            own = [t for t in plan.plan.tensors if t.mode == "input" and t.kind in ("weight", "constant")]
            key = (rank, frozenset(t.model_dump_json() for t in own))
            if key not in self._known:
                constants = self._program.ranks[rank].constants
                self._known[key] = read_stage_tensors(own, self._sources[rank], constants, self._first)
            found.append(self._known[key])
        return found


def ort_of(value: Array) -> ort.OrtValue:
    """bf16 becomes f32; e4m3 stays. Memory is shared with ``value`` where the type stays."""
    import onnxruntime as ort

    if value.dtype == NUMPY["e4m3"]:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(value.view(np.uint8), E4M3)
    if value.dtype == NUMPY["bf16"]:
        value = value.astype(np.float32)
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))


def torch_of(value: Array) -> Tensor:
    """In the same type, of the same memory."""
    import torch

    if value.dtype == NUMPY["e4m3"]:
        return torch.from_numpy(value.view(np.uint8)).view(torch.float8_e4m3fn)
    if value.dtype == NUMPY["bf16"]:
        return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def _check(tensor: PlanTensor, value: Array, name: str) -> None:
    if value.dtype != NUMPY[tensor.dtype] or list(value.shape) != tensor.shape:
        raise BundleError(
            f"{name} is {value.dtype} {list(value.shape)}, the plans read {tensor.dtype} {tensor.shape}",
            where="the rank's weights",
        )
