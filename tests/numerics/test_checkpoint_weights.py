"""--weights checkpoint: a bundle without weights files computes what the bundle with them does, to the byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm2c.bundle.describe import describe
from mm2c.checkpoint import Checkpoint
from mm2c.checkpoint.shard import read_shard
from mm2c.errors import UserError
from mm2c.pipeline import BuildRequest, build_bundle
from mm2c.progress import Quiet
from mm2c.verify.run import verify_checkpoint
from mm2c_runtime.bundle import Bundle
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.program import read_program
from mm2c_runtime.executors.cuda.recipe_weights import load_from_checkpoint, open_recipes
from mm2c_runtime.executors.cuda.weights import load_weights, open_weights
from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
from mm2c_runtime.manifest_file import read_bundle
from mm2c_runtime.memory import needed
from mm2c_runtime.step import RowStep, StepBatch
from mm2c_runtime.weights.checkpoint import VARIABLE, StoredCheckpoint
from mm2c_runtime.weights.load import load_tensors
from mm2c_runtime.weights.recipe_file import load_recipes

SHAPE = dict(
    layers=2, hidden=256, heads=8, kv_heads=4, head_dim=64, rotary_dim=32, intermediate=256, experts=4
)
LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("fp8", {}),
    ("fp8", dict(tp=2, ep=2)),
    ("mixed", dict(tp=2, bf16=True)),
    ("bf16", dict(fp8=True)),
]
PROMPT = RowStep(row=0, tokens=[1, 5, 9, 300], past_len=0, new_len=4, sample=False)


@pytest.fixture(scope="module")
def pair(
    random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """(checkpoint, bundle with weights files, bundle without) of a layout, each built once."""
    made: dict[str, tuple[Path, Path, Path]] = {}

    def build(quant: str, options: dict[str, Any]) -> tuple[Path, Path, Path]:
        key = repr((quant, options))
        if key not in made:
            checkpoint = random_checkpoint(**SHAPE, quant=quant, seed=61)
            folder = tmp_path_factory.mktemp("bundles")
            for place in ("copy", "checkpoint"):
                request = BuildRequest(
                    source=str(checkpoint),
                    output=folder / place,
                    context=128,
                    cache=False,
                    weights=place,
                    **options,
                )
                build_bundle(request, Quiet())
            made[key] = checkpoint, folder / "copy", folder / "checkpoint"
        return made[key]

    return build


@pytest.mark.parametrize(("quant", "options"), LAYOUTS)
def test_tensors_are_those_of_the_weights_files(
    pair: Callable[..., Any], quant: str, options: dict[str, Any]
) -> None:
    checkpoint, copy, bare = pair(quant, options)
    manifest = read_bundle(bare)
    assert manifest.weights == "checkpoint"
    assert manifest.checkpoint is not None
    assert not list(bare.rglob("*.safetensors"))
    files = sorted(path.relative_to(copy) for path in copy.rglob("rank*/*.safetensors"))
    assert files
    with StoredCheckpoint.open(checkpoint, manifest.checkpoint) as stored:
        for file in files:
            recipes = load_recipes(bare / file)
            stored.check_sources(recipes.values())
            tensors = load_tensors(recipes, stored, threads=2)
            raw, (places, _) = (copy / file).read_bytes(), read_shard(copy / file)
            assert tensors.keys() == places.keys()
            for name, place in places.items():
                assert tensors[name].tobytes() == raw[place.offset : place.offset + place.nbytes], name


@pytest.mark.parametrize(("quant", "options"), LAYOUTS)
def test_logits_are_the_same(pair: Callable[..., Any], quant: str, options: dict[str, Any]) -> None:
    _, copy, bare = pair(quant, options)
    for lowering in ("fast", "portable"):
        found = []
        for bundle in (copy, bare):
            executor = OnnxRuntimeExecutor(bundle, read_bundle(bundle), lowering=lowering, threads=1)
            found.append(executor.forward(StepBatch(step_id=0, kind="prefill", rows=[PROMPT])))
            executor.close()
        np.testing.assert_array_equal(found[0], found[1])


def test_such_a_bundle_is_verified_and_described(pair: Callable[..., Any]) -> None:
    _, copy, bare = pair(*LAYOUTS[1])
    assert verify_checkpoint(bare, None, "all", steps=4, rows=2, progress=Quiet()).passed
    with_files, without = describe(copy), describe(bare)
    for ours, theirs in zip(without["ranks"], with_files["ranks"], strict=True):
        assert 0 < ours["weight_bytes"] <= theirs["weight_bytes"]  # a file has a header too


def test_memory_is_asked_for_all_tensors(pair: Callable[..., Any]) -> None:
    _, copy, bare = pair(*LAYOUTS[0])
    there, here = (needed(b, read_bundle(b), read_bundle(b).lowerings["fast"]) for b in (copy, bare))
    header = 8 + int.from_bytes((copy / "rank0/weights.ort.safetensors").read_bytes()[:8], "little")
    assert here.weights == there.weights - header
    assert here.per_token == there.per_token


@pytest.fixture
def moved(pair: Callable[..., Any], tmp_path: Path) -> tuple[Path, Path]:
    """A bundle whose checkpoint is not where it was, and the place it went to."""
    checkpoint, _, _ = pair(*LAYOUTS[0])
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(checkpoint, first)
    request = BuildRequest(
        source=str(first), output=tmp_path / "bundle", context=128, cache=False, weights="checkpoint"
    )
    build_bundle(request, Quiet())
    first.rename(second)
    return tmp_path / "bundle", second


def test_a_moved_checkpoint_is_served_when_its_place_is_said(
    moved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, second = moved
    with pytest.raises(BundleError, match="not there") as caught:
        Bundle.load(bundle, threads=1)
    assert VARIABLE in caught.value.remedy
    assert "--checkpoint" in caught.value.remedy
    asked = dict(prompt="ab", max_tokens=4, temperature=0.0)
    with pytest.raises(UserError, match="not at hand"):
        verify_checkpoint(bundle, None, "fast", steps=2, rows=1, progress=Quiet())
    assert verify_checkpoint(bundle, str(second), "fast", steps=2, rows=1, progress=Quiet()).passed
    monkeypatch.setenv(VARIABLE, str(second))
    with Bundle.load(bundle, threads=1) as loaded:
        assert loaded.generate(**asked).num_output_tokens
    found = verify_checkpoint(bundle, None, "fast", steps=2, rows=1, progress=Quiet())
    assert (found.passed, found.checkpoint) == (True, str(second))
    monkeypatch.setenv(VARIABLE, str(bundle.with_name("gone")))
    with pytest.raises(UserError, match="not at hand") as gone:
        verify_checkpoint(bundle, None, "fast", steps=2, rows=1, progress=Quiet())
    assert gone.value.where == f"${VARIABLE} = {bundle.with_name('gone')}"


def test_a_bundle_is_verified_from_another_folder_than_it_was_built_in(
    random_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint was named by a relative path."""
    checkpoint = random_checkpoint(**SHAPE, quant="fp8", seed=61)
    monkeypatch.chdir(checkpoint.parent)
    bundle = tmp_path / "bundle"
    build_bundle(BuildRequest(source=checkpoint.name, output=bundle, context=128, cache=False), Quiet())
    monkeypatch.chdir(tmp_path)
    assert verify_checkpoint(bundle, None, "fast", steps=2, rows=1, progress=Quiet()).passed


def test_building_again_from_the_new_place_is_not_up_to_date(moved: tuple[Path, Path]) -> None:
    bundle, second = moved
    again = dict(output=bundle, context=128, cache=False, weights="checkpoint")
    with pytest.raises(UserError, match="of another checkpoint"):
        build_bundle(BuildRequest(source=str(second), **again), Quiet())
    assert not build_bundle(BuildRequest(source=str(second), force=True, **again), Quiet()).up_to_date
    assert build_bundle(BuildRequest(source=str(second), **again), Quiet()).up_to_date
    Bundle.load(bundle, threads=1).close()


def test_a_changed_checkpoint_is_refused(moved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, second = moved
    monkeypatch.setenv(VARIABLE, str(second))
    with Checkpoint.open(second) as checkpoint:
        place = checkpoint.tensors["model.norm.weight"]
    with (second / place.file).open("r+b") as file:
        file.seek(place.offset)
        byte = file.read(1)[0]
        file.seek(place.offset)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(BundleError, match="weights are not those"):
        Bundle.load(bundle, threads=1)
    with pytest.raises(UserError, match="weights are others"):
        verify_checkpoint(bundle, str(second), "fast", steps=2, rows=1, progress=Quiet())


@pytest.mark.usefixtures("one_thread")
def test_the_cuda_engines_tensors_are_those_of_its_file(tiny_m2: Path, tmp_path: Path) -> None:
    from cuda_reference import build_cuda_bundle

    sizes: dict[str, Any] = dict(context=256, max_rows=4, prefill_chunk=32)
    library = tmp_path / "library"
    copy = build_cuda_bundle(tiny_m2, tmp_path / "copy", library, **sizes)
    bare = build_cuda_bundle(tiny_m2, tmp_path / "bare", library, weights="checkpoint", **sizes)
    manifest = read_bundle(bare)
    assert manifest.cuda is not None
    assert manifest.checkpoint is not None
    assert not list(bare.rglob("*.safetensors"))
    rank = manifest.cuda.ranks[0]
    program = read_program(bare / rank.program)
    cpu = torch.device("cpu")
    wanted = load_weights(open_weights(copy / rank.weights, program.weights), cpu)
    with StoredCheckpoint.open(tiny_m2, manifest.checkpoint) as stored:
        recipes = open_recipes(bare / rank.weights, program.weights, stored)
        found = load_from_checkpoint(recipes, stored, cpu)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype, name
            assert found[name].is_contiguous(), name
            assert found[name].data_ptr() % 16 == 0
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
        name = next(iter(program.weights))
        kind = program.weights[name]
        with pytest.raises(BundleError, match="no recipe"):
            open_recipes(bare / rank.weights, {"nothing": kind}, stored)
        with pytest.raises(BundleError, match=f"reads the tensor {name}"):
            open_recipes(bare / rank.weights, {name: type(kind)(kind.dtype, (1, *kind.shape))}, stored)
    asked = dict(prompt="The weather in Paris", max_tokens=6, temperature=0.0)
    answers = []
    for bundle in (copy, bare):
        with Bundle.load(
            bundle, ops="cuda_reference:SamplingOps", verify_checksums="sizes", kv_tokens=250
        ) as loaded:
            answers.append(loaded.generate(**asked).text)
    assert answers[0] == answers[1]
