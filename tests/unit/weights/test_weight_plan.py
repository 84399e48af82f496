"""How the repacker goes through a checkpoint: everything read once, in bounded memory, whatever the recipes are."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm2c.checkpoint import Checkpoint
from mm2c.errors import UserError
from mm2c.weights import outputs, plan, sources, writer
from mm2c.weights.layout import WeightJob, first_source, shared_order
from mm2c.weights.needs import needed_rows
from mm2c.weights.outputs import WrittenWeights
from mm2c.weights.shards import Shards
from mm2c.weights.writer import Repack, write_all
from mm2c_runtime import checksums
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import (
    Cast,
    Concat,
    Dequantize,
    Interleave,
    Pad,
    Quantize,
    QuantizeScale,
    Recipe,
    Repeat,
    Slice,
    Source,
    Stack,
    Transpose,
)

Make = Callable[..., Path]
CHUNK = 64 << 10
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits small enough for small checkpoints to meet all of them."""
    for module in (checksums, outputs, writer):
        monkeypatch.setattr(module, "CHUNK", CHUNK)
    monkeypatch.setattr(plan, "PIECE", 16 << 10)
    monkeypatch.setattr(sources, "WHOLE", 48 << 10)
    monkeypatch.setattr(sources, "BLOCK", 16 << 10)


def expert_parts(checkpoint: Checkpoint, name: str, layer: int = 0, suffix: str = "") -> tuple[Source, ...]:
    keys = [EXPERT.format(layer, expert, name) + suffix for expert in range(checkpoint.config.experts)]
    found = [checkpoint.tensors[key] for key in keys]
    return tuple(Source(key, info.dtype, info.shape) for key, info in zip(keys, found, strict=True))


def check(jobs: list[WeightJob], written: list[WrittenWeights], checkpoint: Checkpoint) -> None:
    for job, result in zip(jobs, written, strict=True):
        raw = job.path.read_bytes()
        for name, recipe in job.recipes.items():
            entry = result.entries[name]
            expected = np.ascontiguousarray(evaluate(recipe, checkpoint)).tobytes()
            assert raw[entry.offset : entry.offset + entry.nbytes] == expected, name


def cut(recipe: Recipe, axis: int, rank: int, ranks: int) -> Recipe:
    size = recipe.shape[axis]
    return Slice(recipe, axis, rank * size // ranks, (rank + 1) * size // ranks)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("direct", [0, 1 << 30])
def test_eight_ranks_read_every_byte_once(
    random_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, direct: int
) -> None:
    """The experts' width cut for some ranks, whole experts for others, dequantised ones beside them."""
    monkeypatch.setattr(writer, "DIRECT", direct)
    with Checkpoint.open(random_checkpoint(layers=2, intermediate=256, seed=3)) as checkpoint:
        jobs = []
        for rank in range(ranks):
            recipes: dict[str, Recipe] = {}
            for layer in (0, 1):
                w1, w3 = expert_parts(checkpoint, "w1", layer), expert_parts(checkpoint, "w3", layer)
                scales = [expert_parts(checkpoint, w, layer, "_scale_inv") for w in ("w1", "w3")]
                gate_up = Stack(tuple(Concat(pair, 0) for pair in zip(w1, w3, strict=True)))
                scale = Stack(tuple(Concat(pair, 0) for pair in zip(*scales, strict=True)))
                if rank % 2:
                    recipes[f"{layer}.gate_up"] = Interleave(Dequantize(gate_up, scale, 128, 128), 1)
                else:
                    recipes[f"{layer}.gate_up"] = cut(gate_up, 1, rank, ranks)
                    recipes[f"{layer}.scale"] = Repeat(scale, 1, 2)
                down = Stack(expert_parts(checkpoint, "w2", layer))
                recipes[f"{layer}.down"] = cut(down, 0 if rank % 3 else 2, rank, ranks)
            recipes["head"] = cut(
                Source("lm_head.weight", "bf16", checkpoint.tensors["lm_head.weight"].shape), 0, rank, ranks
            )
            recipes["embedding"] = recipes["head"]
            jobs.append(WeightJob(tmp_path / f"rank{rank}", recipes))
        repack = Repack(jobs, checkpoint)
        written = repack.run()
        wanted = {key for job in jobs for recipe in job.recipes.values() for key in needed_rows(recipe)}
        assert repack.bytes_read == sum(checkpoint.tensors[key].nbytes for key in wanted)
        check(jobs, written, checkpoint)
        chunks = sum(-(-result.bytes // CHUNK) for result in written)
        assert repack.buffers < chunks / 2  # those that are being filled, not those of all files


@pytest.mark.usefixtures("small")
def test_dense_weights_are_quantised_by_whole_blocks(random_checkpoint: Make, tmp_path: Path) -> None:
    with Checkpoint.open(random_checkpoint(layers=1, quant="bf16", intermediate=192, seed=4)) as checkpoint:
        stack = Stack(expert_parts(checkpoint, "w1"))
        recipes: dict[str, Recipe] = {
            "codes": Quantize(stack, 128, 128),
            "scale": QuantizeScale(stack, 128, 128),
            "cut": Slice(Quantize(stack, 128, 128), 1, 64, 192),
            "parts": Stack(tuple(Quantize(part, 128, 128) for part in stack.parts)),
            "divided": Slice(Repeat(QuantizeScale(stack, 128, 128), 1, 2), 1, 1, 3),
        }
        assert {first_source(recipe) for recipe in recipes.values()} == {stack.parts[0].key}
        jobs = [WeightJob(tmp_path / "w", recipes)]
        repack = Repack(jobs, checkpoint)
        check(jobs, repack.run(), checkpoint)
        assert repack.bytes_read == sum(checkpoint.tensors[part.key].nbytes for part in stack.parts)


@pytest.mark.usefixtures("small")
def test_a_large_transposed_tensor_is_never_held_whole(
    random_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "TALL", 64 << 10)
    monkeypatch.setattr(plan, "TALL_PIECE", 64 << 10)
    monkeypatch.setattr("mm2c.weights.units._BOX", 16 << 10)
    largest = 0
    real = Shards.read

    def read(self: Shards, file: str, offset: int, into: memoryview) -> None:
        nonlocal largest
        largest = max(largest, len(into))
        real(self, file, offset, into)

    monkeypatch.setattr(Shards, "read", read)
    with Checkpoint.open(random_checkpoint(layers=1, vocab=2048, seed=6)) as checkpoint:
        info = checkpoint.tensors["lm_head.weight"]
        head = Transpose(Cast(Source("lm_head.weight", "bf16", info.shape), "f32"), (1, 0))
        jobs = [WeightJob(tmp_path / f"{rank}", {"head": cut(head, 1, rank, 2)}) for rank in range(2)]
        check(jobs, write_all(jobs, checkpoint), checkpoint)
        assert largest <= 20 << 10 < info.nbytes


def test_the_files_grow_together(random_checkpoint: Make, tmp_path: Path) -> None:
    """With experts divided over the ranks too: the checkpoint is gone through layer by layer, not rank by rank."""
    with Checkpoint.open(random_checkpoint(layers=3, seed=8)) as checkpoint:
        jobs = [
            WeightJob(
                tmp_path / f"{rank}",
                {
                    f"{layer}": Stack(expert_parts(checkpoint, "w2", layer)[4 * rank :][:4])
                    for layer in range(3)
                },
            )
            for rank in range(2)
        ]
        order = shared_order(jobs)
        assert order == [[(rank, str(layer))] for layer in range(3) for rank in range(2)]


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(1, 30), min_size=1, max_size=3), limit=st.integers(1, 5000))
def test_boxes_tile_a_tensor_in_order(shape: list[int], limit: int) -> None:
    place = 0
    for region in plan._boxes(tuple(shape), 2, limit):
        index = np.ravel_multi_index([start for start, _ in region], shape)
        assert index == place
        place += math.prod(stop - start for start, stop in region)
    assert place == math.prod(shape)


@pytest.mark.parametrize("node", ["pad", "interleave", "quantize", "scale", "repeat"])
def test_needed_rows_are_the_rows_that_are_read(node: str) -> None:
    source = Source("s", "f32", (300, 260))
    recipe: Recipe = {
        "pad": Pad(source, 0, 400),
        "interleave": Interleave(source, 0),
        "quantize": Quantize(source, 128, 128),
        "scale": QuantizeScale(source, 128, 128),
        "repeat": Repeat(source, 0, 3),
    }[node]
    data = np.random.default_rng(0).standard_normal(source.shape).astype(np.float32)
    for start, stop in ((0, 1), (1, recipe.shape[0]), (recipe.shape[0] // 2, recipe.shape[0] // 2 + 1)):
        read: list[tuple[int, int]] = []

        class Reader:
            def read_rows(self, key: str, first: int, last: int) -> Any:
                read.append((first, last))  # noqa: B023
                return data[first:last]

        region = ((start, stop), (0, recipe.shape[1]))
        evaluate(recipe, Reader(), region)
        hull = (min(first for first, _ in read), max(last for _, last in read)) if read else None
        assert needed_rows(recipe, region).get("s") == hull


@pytest.mark.parametrize("change", ["touched", "replaced", "cut", "gone"])
def test_a_checkpoint_that_changes_meanwhile_is_named(
    random_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder = shutil.copytree(random_checkpoint(layers=1, seed=5), tmp_path / "checkpoint")
    shard = sorted(folder.glob("*.safetensors"))[-1]
    real = Shards.read
    done = False

    def read(self: Shards, file: str, offset: int, into: memoryview) -> None:
        nonlocal done
        if not done:
            done = True
            if change == "touched":
                os.utime(shard)
            elif change == "cut":
                os.truncate(shard, 1000)
            elif change == "gone":
                shard.unlink()
            else:
                shutil.copy2(shard, tmp_path / "other")
                os.replace(tmp_path / "other", shard)
        real(self, file, offset, into)

    monkeypatch.setattr(Shards, "read", read)
    with Checkpoint.open(folder) as checkpoint, pytest.raises(UserError, match=f"shard {shard.name} changed"):
        write_all([WeightJob(tmp_path / "w", checkpoint.recipes())], checkpoint)
    assert not (tmp_path / "w").exists()


def test_a_checkpoint_that_changed_before_the_pass(random_checkpoint: Make, tmp_path: Path) -> None:
    from mm2c.weights.shards import stamps_of

    folder = shutil.copytree(random_checkpoint(layers=1, seed=5), tmp_path / "checkpoint")
    with Checkpoint.open(folder) as checkpoint:
        stamps = stamps_of(checkpoint)
        shard = sorted(stamps)[0]
        os.utime(folder / shard)
        with pytest.raises(UserError, match=f"shard {shard} changed"):
            write_all([WeightJob(tmp_path / "w", checkpoint.recipes())], checkpoint, stamps=stamps)
    assert not (tmp_path / "w").exists()
