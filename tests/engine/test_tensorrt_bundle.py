"""Bundles of TensorRT plans through the command line: built here, from the cache, deferred, refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mm2c.cli.main import app
from mm2c.graphs_tensorrt import ACTIVATION
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.manifest_tensorrt import TensorRTProgram, bound_name
from mm2c_runtime.weights.recipe_file import read_recipes

TWO = ["--tp", "2", "--fp8", "--layers-per-plan", "1", "--context", "64", "--prefill-chunk", "16"]
RTX = ["--engine", "tensorrt-rtx", *TWO]


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(layers=3, intermediate=256, seed=5)


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle at tp 2 with its plans, built with a cache of its own."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (the extra rtx)")
    root = tmp_path_factory.mktemp("plans")
    os.environ["MM2C_CACHE"] = str(root / "cache")
    report = build(checkpoint, *RTX, "-o", root / "bundle")
    assert report["engine"] == "tensorrt-rtx"
    assert str(report["made"]).count("plans (TensorRT-RTX 1.") == 1
    return root / "bundle"


def build(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(app, ["build", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["build", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def program_of(bundle: Path) -> tuple[Manifest, TensorRTProgram]:
    manifest = read_manifest(bundle)
    assert manifest.tensorrt is not None
    return manifest, manifest.tensorrt


def test_plans_are_shared_by_stages_and_ranks(built: Path) -> None:
    manifest, program = program_of(built)
    assert [plan.name for plan in program.plans] == [
        f"{run}.{i}" for run in ("decode", "prefill") for i in range(3)
    ]
    assert not program.deferred
    assert program.head == "candidates"
    for rank in program.ranks:
        for run in rank.runs:
            assert [stage.first_layer for stage in run.stages] == [0, 1, 2]
        assert [[stage.plan for stage in run.stages] for run in rank.runs] == [[0, 1, 2], [3, 4, 5]]
    assert [rank.constants for rank in program.ranks] == [
        {"vocabulary.first": [rank * -(-manifest.model.vocab // 2)]} for rank in range(2)
    ]
    assert ACTIVATION.name == "BFLOAT16"


def test_files_are_in_the_manifest(built: Path) -> None:
    manifest, program = program_of(built)
    for plan in program.plans:
        assert plan.plan == f"plans/{plan.name}.plan"
        for path in (plan.graph, plan.wide, plan.plan):
            assert manifest.files[path].bytes == (built / path).stat().st_size > 0
        assert plan.scratch > 0
    assert program.version.startswith("1.")
    assert manifest.libraries["tensorrt_rtx"] == program.version
    assert "12.0" in program.target
    assert CliRunner().invoke(app, ["inspect", str(built)]).exit_code == 0


def test_every_weight_of_a_plan_is_in_the_ranks_files(built: Path) -> None:
    _, program = program_of(built)
    for rank in program.ranks:
        recipes = read_recipes(built / rank.weights)
        needed = set()
        for run in rank.runs:
            for stage in run.stages:
                for tensor in program.plans[stage.plan].tensors:
                    if tensor.kind == "weight":
                        recipe = recipes[bound_name(tensor.name, stage.first_layer)]
                        assert (recipe.dtype, list(recipe.shape)) == (tensor.dtype, tensor.shape)
                        needed.add(bound_name(tensor.name, stage.first_layer))
        assert needed == set(recipes)


def test_the_same_again_is_up_to_date(checkpoint: Path, built: Path) -> None:
    before = (built / "manifest.json").stat().st_mtime_ns
    assert build(checkpoint, *RTX, "-o", built)["up_to_date"] is True
    assert (built / "manifest.json").stat().st_mtime_ns == before


def test_another_output_takes_the_plans_of_the_cache(checkpoint: Path, built: Path, tmp_path: Path) -> None:
    report = build(checkpoint, *RTX, "-o", tmp_path / "again")
    assert report["made"] == []
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (built / "manifest.json").read_bytes()


def test_another_target_is_another_bundle(checkpoint: Path, built: Path) -> None:
    said = refused(checkpoint, *RTX, "--target", "sm89", "-o", built)
    assert "a bundle stands at the output already" in said
    assert program_of(built)[1].target != ["8.9"]


def test_plans_of_config_alone(checkpoint: Path, built: Path, tmp_path: Path) -> None:
    report = build(checkpoint, *RTX, "--config-only", "-o", tmp_path / "bare")
    manifest, program = program_of(tmp_path / "bare")
    assert manifest.checkpoint is None
    assert report["engine"] == "tensorrt-rtx"
    assert not program.deferred
    assert [plan.tensors for plan in program.plans] == [plan.tensors for plan in program_of(built)[1].plans]
    assert not list((tmp_path / "bare").glob("rank*/*.safetensors"))


def test_deferred_plans_need_no_library(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    said = refused(checkpoint, *RTX, "-o", tmp_path / "now")
    assert "TensorRT-RTX is not installed" in said
    assert "rtx" in said
    assert not (tmp_path / "now").exists()
    report = build(checkpoint, *RTX, "--defer-plan", "-o", tmp_path / "later")
    assert "deferred" in str(report["made"])
    program = program_of(tmp_path / "later")[1]
    assert program.deferred
    assert program.version == ""
    assert not list((tmp_path / "later").rglob("*.plan"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "tensorrt-rtx", "--target", "sm90"], ["Hopper", "--engine tensorrt"]),
        (["--engine", "onnxruntime", "--target", "sm120"], ["onnxruntime engine has no plans", "--target"]),
        (["--engine", "onnxruntime", "--defer-plan"], ["has no plans", "--defer-plan"]),
        (
            ["--engine", "tensorrt-rtx", "--tp", "1", "--dp", "2", "--ep", "2"],
            ["attention-DP", "--engine cuda"],
        ),
        (["--engine", "tensorrt-rtx", "--weights", "checkpoint"], ["reads its weights from the bundle"]),
        (["--engine", "tensorrt-rtx", "--kv-dtype", "fp8"], ["keeps its KV cache in bf16"]),
        (["--engine", "tensorrt-rtx", "--context", "9999999"], ["longer than the model's context"]),
        (
            ["--engine", "tensorrt-rtx", "--context", "64", "--prefill-chunk", "65"],
            ["than a row's 64 tokens"],
        ),
        (["--engine", "tensorrt"], ["no NVIDIA GPU", "--defer-plan"]),
    ],
)
def test_refusals_come_before_any_work(
    checkpoint: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    said = refused(checkpoint, *arguments, "-o", tmp_path / "none")
    for word in words:
        assert word in said
    assert "Tracing" not in said
    assert not list(tmp_path.iterdir())


def test_serving_is_refused_before_a_server_starts(checkpoint: Path, built: Path, tmp_path: Path) -> None:
    build(checkpoint, *RTX, "--defer-plan", "-o", tmp_path / "later")
    for bundle, words in ((built, "no NVIDIA GPU"), (tmp_path / "later", "plans are still to be built")):
        for command in (["serve", str(bundle)], ["chat", "--local", str(bundle), "-m", "Hello"]):
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 2, result.output
            assert words in " ".join(result.output.split())
            assert "starting tritonserver" not in result.output


def test_finish_takes_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    assert "takes no checkpoint" in refused(checkpoint, "--finish", tmp_path)
