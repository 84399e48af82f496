"""The order in which decode steps are captured, on a torch.cuda that only writes down what it is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mm2c_runtime.executors.cuda.graphs import DecodeGraphs


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log: list[str] = []

    class Stream:
        def __init__(self, name: Any = "side") -> None:
            self.name = "side" if isinstance(name, torch.device) else name

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        log.append(f"on {stream.name}")
        yield
        log.append("off")

    @contextmanager
    def graph(made: Graph, *, pool: str, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        log.append(f"capture on {stream.name} in {pool}, {capture_error_mode}")
        yield
        log.append("captured")

    parameters = inspect.signature(torch.cuda.graph.__init__).parameters
    assert {"pool", "stream", "capture_error_mode"} <= parameters.keys()
    for name, value in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": graph,
        "stream": on,
        "graph_pool_handle": lambda: "pool",
        "current_stream": lambda device: Stream("current"),
        "synchronize": lambda device: log.append("synchronize"),
    }.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, value)
    return log


def test_each_bucket_runs_once_before_it_is_captured(said: list[str]) -> None:
    graphs = DecodeGraphs(lambda rows: said.append(f"run {rows}"), [1, 4], torch.device("cpu"))

    def one(rows: int) -> list[str]:
        return [
            "side waits for current",
            "on side",
            f"run {rows}",
            "off",
            "current waits for side",
            "capture on side in pool, thread_local",
            f"run {rows}",
            "captured",
        ]

    assert said == [*one(4), *one(1), "synchronize"]
    said.clear()
    graphs.replay(4)
    assert said == ["replay"]
    with pytest.raises(KeyError):
        graphs.replay(2)
    graphs.close()
    with pytest.raises(KeyError):
        graphs.replay(4)
