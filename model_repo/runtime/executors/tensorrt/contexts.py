"""One stage of a rank's model: a plan's execution context with its weights bound, run on the tensors of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mm2c_runtime.executors.cuda.aligned import ALIGNMENT
from mm2c_runtime.executors.tensorrt.library import Library
from mm2c_runtime.executors.tensorrt.plans import OpenPlan
from mm2c_runtime.manifest_tensorrt import PlanStage, bound_name

_CACHES = {"k_cache": 0, "v_cache": 1, "k_cache_out": 0, "v_cache_out": 1}


class StageContext:
    """``config``: an IRuntimeConfig whose contexts have no memory of their own. ``scratch``: memory for any of the
    rank's stages, which run one after another. ``fixed``: by the model's names what stays where it is: weights,
    constants, and the hidden states that stages hand on. Changes between steps are told to the context alone where
    there are any."""

    def __init__(
        self,
        opened: OpenPlan,
        stage: PlanStage,
        library: Library,
        *,
        config: Any,
        scratch: Tensor,
        fixed: Mapping[str, Tensor],
        communicator: Any,
        stream: int,
    ) -> None:
        plan = opened.plan
        self._name = f"{plan.name} from layer {stage.first_layer}"
        self._library = library
        self._bound: dict[str, int] = {}
        self._shape: dict[str, int] = {}
        self._inputs = [tensor for tensor in plan.tensors if tensor.mode == "input"]
        self._dynamic = [t for t in self._inputs if any(isinstance(size, str) for size in t.shape)]
        self._step = [tensor.name for tensor in plan.tensors if tensor.kind == "step"]
        self._caches: list[tuple[str, int]] = []
        for tensor in plan.tensors:
            if tensor.kind == "cache":
                side, _, layer = bound_name(tensor.name, stage.first_layer).partition(".")
                self._caches.append((tensor.name, 2 * int(layer) + _CACHES[side]))
        self.has_logits = any(tensor.kind == "logits" for tensor in plan.tensors)
        self._context = opened.engine.create_execution_context(runtime_config=config)
        if self._context is None:
            raise self._failed("cannot be prepared")
        if not self._context.set_optimization_profile_async(stage.profile, stream):
            raise self._failed(f"does not take profile {stage.profile}")
        self._context.set_device_memory(scratch.data_ptr(), scratch.numel())
        if communicator is not None and not self._context.set_communicator(communicator):
            raise self._failed("does not take the NCCL communicator")
        for tensor in plan.tensors:
            if tensor.kind in ("weight", "constant"):
                self._bind(tensor.name, fixed[bound_name(tensor.name, stage.first_layer)])
            elif tensor.kind == "hidden":
                self._bind(tensor.name, fixed[tensor.name])

    def capturable(self, stream: int) -> bool:
        """Whether TensorRT-RTX lets a run be captured; TensorRT always does."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream))

    def run(
        self,
        sizes: Mapping[str, int],
        step: Mapping[str, Tensor],
        caches: Sequence[Tensor],
        logits: Tensor | None,
        stream: int,
    ) -> None:
        """Enqueue. ``sizes``: values of the symbolic sizes. ``caches``: k and v of each layer of the model in turn.
        Raises RuntimeError with the library's words."""
        for name in self._step:
            self._bind(name, step[name])
        for name, place in self._caches:
            self._bind(name, caches[place])
        if logits is not None:
            self._bind("logits", logits)
        if sizes != self._shape:
            self._reshape(sizes)
        if not self._context.execute_async_v3(stream):
            raise self._failed("failed")

    def _reshape(self, sizes: Mapping[str, int]) -> None:
        self._shape = {}  # until all is said
        for tensor in self._dynamic:
            shape = tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
            if not self._context.set_input_shape(tensor.name, shape):
                raise self._failed(f"does not take {tensor.name} of {list(shape)}")
        lacking = self._context.infer_shapes()
        if lacking:
            raise self._failed(f"does not know the shape of {', '.join(lacking)}")
        self._shape = dict(sizes)

    def _bind(self, name: str, tensor: Tensor) -> None:
        address = tensor.data_ptr()
        if self._bound.get(name) == address:
            return
        if address % ALIGNMENT or not tensor.is_contiguous():
            raise RuntimeError(f"{self._name}: {name} does not lie as TensorRT needs it")
        if not self._context.set_tensor_address(name, address):
            raise self._failed(f"does not take the memory of {name}")
        self._bound[name] = address

    def _failed(self, what: str) -> RuntimeError:
        return RuntimeError(f"{self._name} {what}: {self._library.said()}")
