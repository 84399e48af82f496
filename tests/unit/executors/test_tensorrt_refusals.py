"""Bundles of plans that cannot run here are refused before weights are loaded, with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorrt_double import double
from tensorrt_plan_files import write_plan
from toy_plans import tensors, write_bundle
from toy_program import write_weights

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.collectives import SingleRank
from mm2c_runtime.executors.load import load_executor
from mm2c_runtime.executors.tensorrt import TensorRTExecutor
from mm2c_runtime.executors.tensorrt import loading as tensorrt_loading
from mm2c_runtime.executors.tensorrt.checks import check_target
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_tensorrt import Plan

CPU = torch.device("cpu")
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """But where a test says so, weights stay away."""
    monkeypatch.setattr(tensorrt_loading, "rank_weights", _weights)


def _weights(*_: Any) -> Any:
    raise AssertionError("weights were loaded")


def refusal(folder: Path, manifest: Manifest, **options: Any) -> BundleError:
    with pytest.raises(BundleError) as caught:
        TensorRTExecutor(folder, manifest, **{"device": "cpu", "library": double(), **options})
    assert caught.value.remedy
    assert caught.value.where
    return caught.value


def changed(manifest: Manifest, change: Change) -> Manifest:
    raw = manifest.model_dump(mode="json")
    change(raw)
    return Manifest.model_validate(raw)


def program(raw: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = raw["tensorrt"]
    return found


def runs(raw: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = program(raw)["ranks"][0]["runs"]
    return found


CASES: list[tuple[Change, str, str]] = [
    (lambda raw: raw.update(tensorrt=None), "has no plans", "--engine tensorrt-rtx"),
    (
        lambda raw: program(raw)["plans"][1].update(plan=None),
        "1 of the bundle's 6 plans are still to be built: decode.middle",
        "mm2c build --finish",
    ),
    (lambda raw: raw["mapping"].update(ep=2), "attention groups", "--engine cuda"),
    (
        lambda raw: program(raw).update(version="1.7.2"),
        "built with tensorrt_double 1.7.2, 0.double is installed",
        "install tensorrt_double 1.7.2",
    ),
    (lambda raw: program(raw)["ranks"][0].update(rank=3), "rank 0 is called rank 3", "--force"),
    (lambda raw: raw["model"].update(layers=5), "of 4 layers, the model has 5", "--force"),
    (lambda raw: program(raw).update(head="candidates"), "a part of the vocabulary", "--force"),
    (lambda raw: runs(raw).pop(0), "none takes a step of 2 rows of 1 tokens", "--force"),
    (lambda raw: raw["limits"].update(prefill_chunk=7), "none takes a step of 1 rows of 7 tokens", "--force"),
    (lambda raw: runs(raw)[0]["stages"].pop(), "stage 2 of 3 has no logits", "--force"),
    (lambda raw: runs(raw)[0]["stages"].pop(1), "stage 1 begins with layer 2, not 1", "--force"),
    (lambda raw: runs(raw)[0]["stages"][1].update(plan=9), "stage 1 has plan 9 of 6", "--force"),
    (lambda raw: runs(raw)[0]["stages"][1].update(profile=1), "stage 1 has profile 1 of 1", "--force"),
    (lambda raw: runs(raw)[0]["stages"][1].update(plan=4, profile=1), "does not cover decode", "--force"),
    (
        lambda raw: program(raw)["ranks"][0].update(constants={}),
        "reads the constant vocabulary.first, which the rank lacks",
        "--force",
    ),
    (
        lambda raw: raw["files"].pop("plans/decode.first.plan"),
        "does not list plans/decode.first.plan",
        "--force",
    ),
    (lambda raw: raw["model"].update(vocab=11), "the bundle's are f32 ['batch', 11]", "--force"),
]


@pytest.mark.parametrize(("change", "what", "remedy"), CASES, ids=[case[1][:40] for case in CASES])
def test_manifests_that_cannot_be_run(tmp_path: Path, change: Change, what: str, remedy: str) -> None:
    error = refusal(tmp_path, changed(write_bundle(tmp_path), change))
    assert what in error.what
    assert remedy in error.remedy


def test_hidden_states_that_nobody_takes(tmp_path: Path) -> None:
    def rename(raw: dict[str, Any]) -> None:
        for tensor in program(raw)["plans"][1]["tensors"]:
            if tensor["name"] == "hidden.0":
                tensor["name"] = "hidden.1"

    error = refusal(tmp_path, changed(write_bundle(tmp_path), rename))
    assert "stage 1 takes ['1'], the one before hands on ['0']" in error.what


def test_plans_that_are_missing_or_altered(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path)
    path = tmp_path / "plans/decode.middle.plan"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "the manifest says" in refusal(tmp_path, manifest).what
    path.write_bytes(whole[:-1] + b" ")
    assert "altered after the build" in refusal(tmp_path, manifest).what
    path.unlink()
    assert "cannot be read" in refusal(tmp_path, manifest).what


def rewritten(folder: Path, change: Callable[[Plan], Plan], **more: Any) -> Manifest:
    """The bundle with another first plan than its manifest describes."""
    manifest = write_bundle(folder)
    assert manifest.tensorrt is not None
    plan = manifest.tensorrt.plans[0]
    assert plan.plan is not None
    entry = write_plan(folder, change(plan), **more)
    return manifest.model_copy(update={"files": {**manifest.files, plan.plan: entry}})


def with_tensor(which: str, **update: Any) -> Callable[[Plan], Plan]:
    def change(plan: Plan) -> Plan:
        some = [t.model_copy(update=update) if t.name == which else t for t in plan.tensors]
        return plan.model_copy(update={"tensors": some})

    return change


TABLES: list[tuple[Callable[[Plan], Plan], str]] = [
    (with_tensor("k_cache.0", name="k_cache.7"), "it has k_cache.7, which the manifest does not name"),
    (lambda plan: plan.model_copy(update={"tensors": plan.tensors[1:]}), "it lacks input_ids"),
    (
        lambda plan: plan.model_copy(update={"profiles": plan.profiles * 2}),
        "it has 2 profiles, the manifest 1",
    ),
    (with_tensor("hidden_out.0", mode="input"), "hidden_out.0 is no output"),
    (with_tensor("layers.0.scale", dtype="f32"), "layers.0.scale is FLOAT, the manifest says bf16"),
    (with_tensor("layers.0.scale", shape=[64]), "layers.0.scale is [64], the manifest says [128]"),
    (with_tensor("past_len", shape=[1]), "past_len is [1], the manifest says ['batch']"),
    (
        lambda plan: plan.model_copy(
            update={"profiles": [p.model_copy(update={"batch": (1, 8, 8)}) for p in plan.profiles]}
        ),
        "input_ids is [8, 1] at its optimal in profile decode, not [16, 1]",
    ),
]


@pytest.mark.parametrize(("change", "what"), TABLES, ids=[what[:30] for _, what in TABLES])
def test_engines_that_are_not_what_the_manifest_says(
    tmp_path: Path, change: Callable[[Plan], Plan], what: str
) -> None:
    error = refusal(tmp_path, rewritten(tmp_path, change))
    assert what in error.what
    assert error.where.endswith("decode.first.plan")


def test_an_output_that_shares_anothers_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tensorrt_double.ICudaEngine.get_aliased_input_tensor", lambda self, name: "v_cache.0"
    )
    error = refusal(tmp_path, write_bundle(tmp_path))
    assert "k_cache_out.0 shares the memory of v_cache.0, not of k_cache.0" in error.what


def test_what_the_library_says_of_a_plan(tmp_path: Path) -> None:
    error = refusal(tmp_path, rewritten(tmp_path, lambda plan: plan, reasons=3))
    assert error.what == "the plan cannot run here: version mismatch, unsupported cc"
    assert "GPU that it was built for" in error.remedy
    manifest = rewritten(tmp_path, lambda plan: plan)
    plan = tmp_path / "plans/decode.first.plan"
    plan.write_bytes(b"{}" + b" " * (plan.stat().st_size - 2))
    from mm2c_runtime.manifest import FileEntry

    entry = FileEntry(
        sha256=__import__("hashlib").sha256(plan.read_bytes()).hexdigest(), bytes=plan.stat().st_size
    )
    manifest = manifest.model_copy(update={"files": {**manifest.files, "plans/decode.first.plan": entry}})
    error = refusal(tmp_path, manifest)
    assert "cannot be loaded: the engine cannot be deserialised: KeyError" in error.what


def test_weights_that_are_not_those_of_the_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    manifest = write_bundle(tmp_path)
    write_weights(tmp_path / "rank0/weights.safetensors", dict(list(tensors().items())[:-1]))
    assert "bytes, the manifest says" in refusal(tmp_path, manifest).what
    size = (tmp_path / "rank0/weights.safetensors").stat().st_size
    entry = manifest.files["rank0/weights.safetensors"].model_copy(update={"bytes": size})
    some = manifest.model_copy(update={"files": {**manifest.files, "rank0/weights.safetensors": entry}})
    assert "lack the tensor model.layers.3.scale" in refusal(tmp_path, some).what
    wide = {name: x.float() for name, x in tensors().items()}
    write_weights(tmp_path / "rank0/weights.safetensors", wide)
    size = (tmp_path / "rank0/weights.safetensors").stat().st_size
    entry = entry.model_copy(update={"bytes": size})
    some = manifest.model_copy(update={"files": {**manifest.files, "rank0/weights.safetensors": entry}})
    error = refusal(tmp_path, some)
    assert "is f32[10, 128], the program reads bf16[10, 128]" in error.what


def test_other_ranks_than_the_bundles(tmp_path: Path) -> None:
    two = SingleRank()
    two.ranks = 2
    error = refusal(tmp_path, write_bundle(tmp_path), collectives=two)
    assert error.what == "the bundle is for 1 GPUs, 2 rank(s) load it"


def test_a_gpu_that_the_plans_were_not_built_for(tmp_path: Path) -> None:
    manifest = changed(write_bundle(tmp_path), lambda raw: program(raw).update(target=["12.0", "12.1"]))
    assert manifest.tensorrt is not None
    check_target(manifest.tensorrt, CPU, None)
    check_target(manifest.tensorrt, CPU, (12, 1))
    with pytest.raises(BundleError) as caught:
        check_target(manifest.tensorrt, torch.device("cuda:1"), (9, 0))
    assert caught.value.what == "the plans were built for compute capability 12.0, 12.1, this GPU has 9.0"
    assert "--target sm90" in caught.value.remedy
    assert "--engine cuda" in caught.value.remedy
    assert caught.value.where == "cuda:1"


def test_without_a_gpu_the_refusal_says_what_to_do(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    manifest = write_bundle(tmp_path)
    with pytest.raises(BundleError, match="CUDA"):
        load_executor(tmp_path, manifest, lowering="fast", threads=None, kv_tokens=None)


def test_plans_that_are_to_be_built_start_no_processes(tmp_path: Path) -> None:
    def two_ranks(raw: dict[str, Any]) -> None:
        program(raw)["ranks"] *= 2
        program(raw)["plans"][0].update(plan=None)

    manifest = changed(write_bundle(tmp_path), two_ranks)
    with pytest.raises(BundleError) as caught:
        load_executor(tmp_path, manifest, lowering="fast", threads=None, kv_tokens=None)
    assert caught.value.what.startswith("1 of the bundle's 6 plans are still to be built: decode.first")


def test_the_first_step_that_fails_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    manifest = write_bundle(tmp_path)
    monkeypatch.setattr(
        "tensorrt_double.IExecutionContext.set_optimization_profile_async", lambda self, i, s: False
    )
    error = refusal(tmp_path, manifest)
    assert "cannot be prepared on cpu: decode.first from layer 0 does not take profile 0" in error.what


def test_plan_files_name_their_graph(tmp_path: Path) -> None:
    """Of the double itself: what a test's bundle holds is what it runs."""
    manifest = write_bundle(tmp_path)
    assert manifest.tensorrt is not None
    plan = manifest.tensorrt.plans[0]
    assert json.loads((tmp_path / str(plan.plan)).read_bytes())["graph"] == str(tmp_path / plan.wide)
