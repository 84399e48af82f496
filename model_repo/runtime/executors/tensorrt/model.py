"""A rank's model as stages of plans: what a stepper runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm2c_runtime.executors.cuda.aligned import ALIGNMENT, aligned_bytes, aligned_empty
from mm2c_runtime.executors.cuda.dtypes import ITEMSIZE, TORCH
from mm2c_runtime.executors.tensorrt.contexts import StageContext
from mm2c_runtime.executors.tensorrt.kernel_cache import KernelCache
from mm2c_runtime.executors.tensorrt.library import Communicator, Library
from mm2c_runtime.executors.tensorrt.plans import OpenPlan
from mm2c_runtime.manifest_tensorrt import PlanRank, PlanRun, Profile

log = logging.getLogger("mm2c.tensorrt")


@dataclass(frozen=True)
class _Run:
    """``logits``: shape of the last stage's, with symbols."""

    profile: Profile
    stages: list[StageContext]
    logits: list[int | str]


def is_captured(profile: Profile) -> bool:
    """Whether its steps are short enough to be captured: a token of each row, from one row on."""
    return profile.seq[2] == 1 and profile.batch[0] == 1


class PlanModel:
    """``opened``: the rank's plans by their index. ``runtime``: that they were loaded by; it outlives them.
    ``weights``: by the model's names. All stages share one block of scratch memory, and hand their hidden states on
    through two sets of buffers in turn.

    Raises RuntimeError where the library does not take what it is given.
    """

    def __init__(
        self,
        rank: PlanRank,
        opened: Mapping[int, OpenPlan],
        library: Library,
        runtime: Any,
        weights: Mapping[str, Tensor],
        communicator: Communicator | None,
        cache: KernelCache,
        device: torch.device,
    ) -> None:
        self._device, self._library, self._communicator = device, library, communicator
        self._runtime, self._opened, self._cache = runtime, dict(opened), cache
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        constants = {name: _constant(values, device) for name, values in rank.constants.items()}
        self._weights: dict[str, Tensor] = {**weights, **constants}
        stages = [(run, stage) for run in rank.runs for stage in run.stages]
        scratch = max(opened[stage.plan].scratch(stage.profile) for _, stage in stages)
        self._scratch = aligned_bytes(max(scratch, ALIGNMENT), device)
        self._hidden = _hidden_buffers(rank, opened, device)
        self._configs: dict[tuple[int, bool], Any] = {}
        self._runs = [self._prepared(run) for run in rank.runs]
        self._wait()  # profiles are chosen on the stream

    @property
    def kept_bytes(self) -> int:
        """Of the memory that it keeps beside the weights."""
        hidden = [buffer for buffers in self._hidden for buffer in buffers.values()]
        return sum(kept.numel() * kept.element_size() for kept in (self._scratch, *hidden))

    @property
    def capturable(self) -> bool:
        with self._stream() as stream:
            stages = [stage for run in self._runs if is_captured(run.profile) for stage in run.stages]
            found = all(stage.capturable(stream) for stage in stages)
        if not found:
            log.warning("the library does not let steps be captured: decode is launched kernel by kernel")
        return found

    def most_rows(self, width: int) -> int:
        """Of all runs that take rows of ``width`` tokens."""
        fitting = [run.profile for run in self._runs if run.profile.seq[0] <= width <= run.profile.seq[2]]
        return max((profile.batch[2] for profile in fitting), default=0)

    def run(
        self,
        input_ids: Tensor,
        past_len: Tensor,
        new_len: Tensor,
        block_table: Tensor,
        caches: Sequence[Tensor],
        step_tokens: int = 0,
    ) -> Tensor:
        """As ``StepModel.run``. Raises ValueError for a step that no profile takes."""
        batch, seq = input_ids.shape
        run = next((run for run in self._runs if run.profile.covers(batch, seq)), None)
        if run is None:
            raise ValueError(f"no plan takes {batch} rows of {seq} tokens")
        if block_table.data_ptr() % ALIGNMENT:  # not on a GPU
            block_table = aligned_empty(tuple(block_table.shape), block_table.dtype, self._device).copy_(
                block_table
            )
        step = {
            "input_ids": input_ids,
            "past_len": past_len,
            "new_len": new_len,
            "block_table": block_table,
        }
        sizes = {
            "batch": batch,
            "seq": seq,
            "pages_of_row": block_table.shape[-1],
            "pages": caches[0].shape[0],
        }
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in run.logits)
        logits = aligned_empty(shape, torch.float32, self._device)
        with self._stream() as stream:
            for stage in run.stages:
                stage.run(sizes, step, caches, logits if stage.has_logits else None, stream)
        return logits

    def started(self) -> None:
        self._cache.save()

    def close(self) -> None:
        """Contexts go before their engines, and those before the runtime."""
        self._wait()
        self._runs.clear()
        self._configs.clear()
        self._cache.close()
        self._opened.clear()
        self._runtime = None
        if self._communicator is not None:
            self._communicator.close()
            self._communicator = None
        self._weights.clear()

    def _prepared(self, run: PlanRun) -> _Run:
        captured = is_captured(run.profile)
        stages = []
        for number, stage in enumerate(run.stages):
            hidden = {f"hidden.{n}": b for n, b in self._hidden[(number + 1) % 2].items()}
            hidden |= {f"hidden_out.{n}": b for n, b in self._hidden[number % 2].items()}
            with self._stream() as stream:
                made = StageContext(
                    self._opened[stage.plan],
                    stage,
                    self._library,
                    config=self._config(stage.plan, captured),
                    scratch=self._scratch,
                    fixed={**self._weights, **hidden},
                    communicator=None if self._communicator is None else self._communicator.handle,
                    stream=stream,
                )
            stages.append(made)
        tensors = self._opened[run.stages[-1].plan].plan.tensors
        logits = next(tensor.shape for tensor in tensors if tensor.kind == "logits")
        return _Run(run.profile, stages, logits)

    def _config(self, plan: int, captured: bool) -> Any:
        """TensorRT-RTX compiles kernels for the very shapes of a step before it runs them: wanted where the step is
        captured, for these shapes are few and come again. A prefill has any length; it runs the kernels that were
        compiled for all."""
        config = self._configs.get((plan, captured))
        if config is not None:
            return config
        trt = self._library.module
        config = self._opened[plan].engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = (
                strategies.EAGER if captured else strategies.NONE
            )
            config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the stepper captures whole steps
            self._cache.use(config)
        self._configs[plan, captured] = config
        return config

    @contextmanager
    def _stream(self) -> Iterator[int]:
        """The handle of a stream that is not the default one, on which TensorRT waits for the device."""
        if self._side is None:
            yield 0
            return
        current = torch.cuda.current_stream(self._device)
        if current != torch.cuda.default_stream(self._device):
            yield int(current.cuda_stream)
            return
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            yield int(self._side.cuda_stream)
        current.wait_stream(self._side)

    def _wait(self) -> None:
        if self._side is not None:
            torch.cuda.synchronize(self._device)


def _constant(values: Sequence[int], device: torch.device) -> Tensor:
    made = aligned_empty((len(values),), torch.int64, device)
    return made.copy_(torch.tensor(values, dtype=torch.int64))


def _hidden_buffers(
    rank: PlanRank, opened: Mapping[int, OpenPlan], device: torch.device
) -> list[dict[str, Tensor]]:
    """Two sets: for every hidden state that stages hand on, by its number, room for the largest step."""
    most: dict[str, tuple[int, str]] = {}
    for run in rank.runs:
        sizes = {"batch": run.profile.batch[2], "seq": run.profile.seq[2]}
        for stage in run.stages:
            for tensor in opened[stage.plan].plan.tensors:
                if tensor.kind == "hidden" and tensor.mode == "output":
                    number = tensor.name.partition(".")[2]
                    count = math.prod(sizes[s] if isinstance(s, str) else s for s in tensor.shape)
                    size = count * ITEMSIZE[tensor.dtype]
                    if size > most.get(number, (0, ""))[0]:
                        most[number] = (size, tensor.dtype)
    return [
        {
            number: aligned_empty((size // ITEMSIZE[dtype],), TORCH[dtype], device)
            for number, (size, dtype) in most.items()
        }
        for _ in range(2)
    ]
