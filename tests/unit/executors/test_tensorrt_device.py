"""What the executor for TensorRT does on a GPU alone, on a torch.cuda that only writes down what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorrt_double import (
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    double,
)
from toy_plans import ROWS, write_bundle

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.device import open_device
from mm2c_runtime.executors.cuda.memory import MARGIN, Room, pages_that_fit, pages_wanted
from mm2c_runtime.executors.cuda.program import Kv
from mm2c_runtime.executors.tensorrt import TensorRTExecutor
from mm2c_runtime.executors.tensorrt.facts import PlanFacts


class Stream:
    def __init__(self, name: str, handle: int, log: list[str]) -> None:
        self.name, self.cuda_stream, self.log = name, handle, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("current", ["default", "capturing"])
def test_plans_never_run_on_the_default_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: str
) -> None:
    """On one beside it, in order with it; while a graph is captured on another, on that."""
    executor = TensorRTExecutor(tmp_path, write_bundle(tmp_path), device="cpu", library=double())
    log: list[str] = []
    streams = {name: Stream(name, n, log) for n, name in enumerate(("default", "capturing", "side"), 5)}

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        log.append(f"on {stream.name}")
        yield
        log.append("off")

    for name, value in {
        "current_stream": lambda device: streams[current],
        "default_stream": lambda device: streams["default"],
        "stream": on,
    }.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, value)
    model: Any = executor._model
    model._side = streams["side"]
    with model._stream() as handle:
        log.append(f"run on {handle}")
    if current == "default":
        order = ["side waits for default", "on side", "run on 7", "off", "default waits for side"]
    else:
        order = ["run on 6"]
    assert log == order
    model._side = None


@pytest.mark.parametrize("paged", [False, True])
def test_contexts_have_no_memory_of_their_own(tmp_path: Path, paged: bool) -> None:
    """And kernels for the very shapes of a step are compiled where steps are captured."""
    executor = TensorRTExecutor(tmp_path, write_bundle(tmp_path, paged=paged), device="cpu", library=double())
    model: Any = executor._model
    memory = set()
    for opened in model._opened.values():
        for context in opened.engine.contexts:
            assert context.config.strategy == ExecutionContextAllocationStrategy.USER_MANAGED
            assert context.config.cuda_graph_strategy == CudaGraphStrategy.DISABLED
            profile = opened.plan.profiles[context.profile]
            strategy = context.config.dynamic_shapes_kernel_specialization_strategy
            eager = strategy == DynamicShapesKernelSpecializationStrategy.EAGER
            assert eager == (profile.name == "decode")
            memory.add(context.memory)
    assert len(memory) == 1
    caches = {id(c.config.cache) for o in model._opened.values() for c in o.engine.contexts}
    assert len(caches) == 1
    executor.close()


def test_gpus_that_our_kernels_do_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX has none of ours: which GPUs a plan is for, its manifest and the library say."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda index: (7, 5),
        "get_device_name": lambda index: "an old one",
        "set_device": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with pytest.raises(BundleError, match=r"an old one has compute capability 7\.5"):
        open_device("cuda:0")
    assert open_device("cuda:0", kernels=False) == torch.device("cuda", 0)


def facts(most_pages: int | None = None, page: int = 0) -> PlanFacts:
    return PlanFacts(Kv("bf16", page, 2, 1, 128), 10, "last", 1024, ROWS, 64, None, most_pages)


def test_as_many_rows_as_fit_beside_a_spare_one() -> None:
    row = 1024 * facts().kv.bytes_per_token
    assert pages_wanted(facts(), None) == ROWS
    assert [pages_wanted(facts(), tokens) for tokens in (1, 1024, 1025, 10**9)] == [1, 1, 2, ROWS]

    def room(rows: int) -> Room:
        return Room(2**30, rows * row + int(MARGIN * 2**30), 0, 0, 0)

    assert pages_that_fit(facts(), room(100), None, where="here") == ROWS
    assert pages_that_fit(facts(), room(9), None, where="here") == 8
    assert pages_that_fit(facts(), room(2), None, where="here") == 1
    with pytest.raises(BundleError) as caught:
        pages_that_fit(facts(), room(1), None, where="here")
    assert "1024 tokens of KV cache" in caught.value.what
    assert "a shorter --context" in caught.value.remedy
    assert "fp8" not in caught.value.remedy
    with pytest.raises(BundleError) as caught:
        pages_that_fit(facts(), room(4), 5 * 1024, where="here")
    assert "kv_tokens=3072" in caught.value.remedy


def test_no_more_pages_than_the_plans_address() -> None:
    paged = facts(most_pages=100, page=64)
    assert pages_wanted(paged, None) == 100
    assert pages_wanted(paged, 64 * 5) == 5
