"""Plans as engines: deserialised once for all stages that run them, their inputs and outputs compared with the
manifest's table."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.tensorrt.checks import REBUILD
from mm2c_runtime.executors.tensorrt.library import Library
from mm2c_runtime.manifest_tensorrt import Plan, PlanTensor

log = logging.getLogger("mm2c.tensorrt")
_RANGES = ("smallest", "optimal", "largest")


@dataclass(frozen=True)
class OpenPlan:
    """``engine``: an ICudaEngine."""

    plan: Plan
    engine: Any

    def scratch(self, profile: int) -> int:
        """Bytes that a context with this profile is given to work in. What the engine says of all profiles is the least
        that it takes."""
        engine = self.engine
        return max(
            int(engine.device_memory_size_v2), int(engine.get_device_memory_size_for_profile_v2(profile))
        )


def open_plan(bundle: Path, plan: Plan, library: Library, runtime: Any) -> OpenPlan:
    """Raises BundleError where the library refuses it, or where its inputs and outputs are not the manifest's."""
    assert plan.plan is not None
    path = bundle / plan.plan
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"a plan cannot be read: {error.strerror}", where=str(path), remedy=REBUILD
        ) from None
    _check_valid(library, runtime, data, path)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BundleError(
            f"the plan {plan.name} cannot be loaded: {library.said()}",
            where=str(path),
            remedy=f"{REBUILD}; a plan runs with the library release and on the GPUs that it was built for",
        )
    fault = table_fault(library.module, engine, plan)
    if fault:
        raise BundleError(
            f"the plan {plan.name} is not what the manifest says: {fault}", where=str(path), remedy=REBUILD
        )
    return OpenPlan(plan, engine)


def _check_valid(library: Library, runtime: Any, data: bytes, path: Path) -> None:
    """What TensorRT-RTX says of a plan before it is loaded; TensorRT has no such question."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    trt = library.module
    validity, reasons = runtime.get_engine_validity(data)
    if validity == trt.EngineValidity.VALID:
        return
    said = [
        name.lower().replace("_", " ")
        for name, member in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(member) & int(reasons)
    ]
    if validity == trt.EngineValidity.SUBOPTIMAL:
        log.warning("the plan %s is not the best one for this GPU: %s", path.name, ", ".join(said))
        return
    raise BundleError(
        f"the plan cannot run here: {', '.join(said) or library.said()}",
        where=str(path),
        remedy=f"serve it on a GPU that it was built for, with its driver up to date; or {REBUILD}",
    )


def table_fault(trt: Any, engine: Any, plan: Plan) -> str:
    """How an engine's inputs and outputs differ from the manifest's; "" where they do not."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    expected = {tensor.name: tensor for tensor in plan.tensors}
    for name in names:
        if name not in expected:
            return f"it has {name}, which the manifest does not name"
    missing = sorted(expected.keys() - set(names))
    if missing:
        return f"it lacks {missing[0]}"
    if engine.num_optimization_profiles != len(plan.profiles):
        return f"it has {engine.num_optimization_profiles} profiles, the manifest {len(plan.profiles)}"
    dtypes = _dtypes(trt)
    for name, tensor in expected.items():
        fault = _tensor_fault(trt, engine, plan, tensor, dtypes)
        if fault:
            return f"{name} {fault}"
    return ""


def _tensor_fault(trt: Any, engine: Any, plan: Plan, tensor: PlanTensor, dtypes: Mapping[str, str]) -> str:
    name = tensor.name
    modes = {"input": trt.TensorIOMode.INPUT, "output": trt.TensorIOMode.OUTPUT}
    if engine.get_tensor_mode(name) != modes[tensor.mode]:
        return f"is no {tensor.mode}"
    dtype = engine.get_tensor_dtype(name)
    if dtypes.get(dtype.name) != tensor.dtype:
        return f"is {dtype.name}, the manifest says {tensor.dtype}"
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    found = [int(size) for size in engine.get_tensor_shape(name)]
    if found != shape:
        return f"is {found}, the manifest says {tensor.shape}"
    if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
        return "is not on the device"
    if tensor.mode == "output":
        if tensor.kind != "cache":
            return ""
        alias, source = engine.get_aliased_input_tensor(name), name.replace("_cache_out.", "_cache.")
        return f"shares the memory of {alias}, not of {source}" if alias and alias != source else ""
    for index, profile in enumerate(plan.profiles):
        if -1 not in shape:
            break
        ranges = engine.get_tensor_profile_shape(name, index)
        known = {"batch": profile.batch, "seq": profile.seq}
        for end, (title, given) in enumerate(zip(_RANGES, ranges, strict=True)):
            wanted = [known[size][end] if size in known else size for size in tensor.shape]
            fits = all(w == int(g) for w, g in zip(wanted, given, strict=True) if isinstance(w, int))
            if not fits:
                return f"is {[int(g) for g in given]} at its {title} in profile {profile.name}, not {wanted}"
    return ""


def _dtypes(trt: Any) -> dict[str, str]:
    """Manifest dtypes by the names of the library's."""
    names = {
        "FLOAT": "f32",
        "BF16": "bf16",
        "HALF": "f16",
        "INT32": "i32",
        "INT64": "i64",
        "BOOL": "bool",
        "FP8": "e4m3",
    }
    return {name: dtype for name, dtype in names.items() if name in trt.DataType.__members__}


def most_pages(opened: OpenPlan, profile: int) -> int | None:
    """How many pages of KV cache a plan's profile allows; None where its cache is not paged."""
    for tensor in opened.plan.tensors:
        if tensor.kind == "cache" and tensor.mode == "input" and "pages" in tensor.shape:
            largest = opened.engine.get_tensor_profile_shape(tensor.name, profile)[2]
            return int(list(largest)[tensor.shape.index("pages")])
    return None
