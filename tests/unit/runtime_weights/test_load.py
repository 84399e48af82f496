"""Many pieces on several threads: all of them, the first error, and word of how far it is."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from recipe_cases import Tensors

from mm2c_runtime.executors.cuda import recipe_weights
from mm2c_runtime.executors.cuda.program import TensorType
from mm2c_runtime.executors.cuda.recipe_weights import RecipeWeights, load_from_checkpoint
from mm2c_runtime.executors.cuda.weights import Place
from mm2c_runtime.weights import load
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.load import Meter, load_tensors, run_all
from mm2c_runtime.weights.recipe import Concat, Recipe, Stack, Transpose


class Checkpoint(Tensors):
    changed = False

    def check_unchanged(self) -> None:
        if self.changed:
            raise ValueError("changed")


@pytest.mark.parametrize("threads", [1, 3])
def test_all_items_are_done(threads: int) -> None:
    done: list[int] = []
    run_all(lambda item: item * 2, range(50), threads, done.append)
    assert sorted(done) == [2 * item for item in range(50)]


def test_few_items_are_taken_ahead() -> None:
    taken: list[int] = []
    most_ahead = 0
    done = 0

    def items() -> Any:
        for number in range(100):
            taken.append(number)
            yield number

    def count(_: int) -> None:
        nonlocal done, most_ahead
        most_ahead, done = max(most_ahead, len(taken) - done), done + 1

    run_all(lambda item: item, items(), 2, count)
    assert len(taken) == done == 100
    assert most_ahead <= 4


def test_the_first_error_ends_it() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        run_all(work, range(1000), 2, lambda _: None)
    assert len(begun) < 20


def recipes(tensors: Tensors) -> dict[str, Recipe]:
    expert = Concat((tensors.source((6, 8), "e4m3"), tensors.source((6, 8), "e4m3")), 0)
    return {
        "stack": Stack((expert, Concat((tensors.source((6, 8), "e4m3"), tensors.source((6, 8), "e4m3")), 0))),
        "turned": Transpose(tensors.source((5, 9), "bf16"), (1, 0)),
        "plain": tensors.source((7,), "f32"),
    }


def test_tensors_are_loaded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PIECE", 40)
    checkpoint = Checkpoint()
    wanted = recipes(checkpoint)
    found = load_tensors(wanted, checkpoint, threads=3)  # type: ignore[type-var]
    for name, recipe in wanted.items():
        assert found[name].tobytes() == np.ascontiguousarray(evaluate(recipe, checkpoint)).tobytes()
    checkpoint.changed = True
    with pytest.raises(ValueError, match="changed"):
        load_tensors(wanted, checkpoint, threads=1)  # type: ignore[type-var]


def test_the_meter_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LOG_SECONDS", 0.0)
    said: list[str] = []
    monkeypatch.setattr(load.log, "info", lambda text, *values: said.append(text % values))
    meter = Meter(4_000_000_000)
    meter.advance(1_000_000_000)
    meter.end()
    assert "1.00 of 4.00 GB" in said[0]
    assert "left" in said[0]
    assert "GB/s" in said[1]


class _Event:
    def record(self, stream: Any) -> None:
        return

    def synchronize(self) -> None:
        return


class _Stream(_Event):
    def __init__(self, device: Any) -> None:
        self.device = device

    def wait_stream(self, other: Any) -> None:
        return


def test_pinned_buffers_carry_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to a GPU with its memory on the host: pieces, buffers and places are those of the real one."""
    monkeypatch.setattr(recipe_weights, "CHUNK", 50)
    monkeypatch.setattr(recipe_weights, "PIECE", 20)
    for name, value in {
        "Stream": _Stream,
        "Event": _Event,
        "current_stream": lambda device: None,
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    empty = torch.empty

    def on_host(*shape: Any, device: Any = None, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        return empty(*shape, **more)

    monkeypatch.setattr(torch, "empty", on_host)
    checkpoint = Checkpoint()
    wanted = recipes(checkpoint)
    places, end = {}, 0
    for name, recipe in wanted.items():
        array = evaluate(recipe, checkpoint)
        places[name] = Place(TensorType(recipe.dtype, recipe.shape), end, end + array.nbytes)
        end = -(-(end + array.nbytes) // 16) * 16
    weights = RecipeWeights(wanted, places, end)
    found = load_from_checkpoint(weights, checkpoint, torch.device("cuda:0"))  # type: ignore[arg-type]
    for name, recipe in wanted.items():
        array = np.ascontiguousarray(evaluate(recipe, checkpoint))
        assert bytes(found[name].reshape(-1).view(torch.uint8).numpy()) == array.tobytes()
        assert tuple(found[name].shape) == recipe.shape
