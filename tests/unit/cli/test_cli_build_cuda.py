"""`mm2c build --engine cuda` through the command line: a bundle for GPUs, made where there is none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "bundle"))
from stub_library import write_library

from mm2c.cli.main import app
from mm2c.engine import select
from mm2c_runtime.manifest_file import read_bundle, read_manifest
from mm2c_runtime.weights.recipe_file import read_recipes


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(layers=1, intermediate=256, seed=11)


@pytest.fixture(autouse=True)
def machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library, a cache shared by these tests, and no GPU."""
    root = tmp_path_factory.getbasetemp() / "cuda"
    if not (root / "lib").is_dir():
        write_library(root / "lib")
    monkeypatch.setenv("MM2C_PLUGINS", str(root / "lib"))
    monkeypatch.setenv("MM2C_CACHE", str(root / "cache"))
    monkeypatch.setattr(select, "find_gpu", lambda: None)


def build(*arguments: object, engine: str = "cuda") -> dict[str, Any]:
    result = CliRunner().invoke(app, ["build", *map(str, arguments), "--engine", engine, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def program(bundle: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / f"rank{rank}" / "cuda.json").read_text())
    return found


def test_a_bundle_has_program_library_binding_and_weights(checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    report = build(checkpoint, "--tp", 2, "-o", bundle)
    assert (report["engine"], report["reason"]) == ("cuda", "asked for")
    assert "plugin library 0.1.0+0123456789ab, kernels for compute capability 8.0, 9.0" in report["notes"]
    manifest = read_bundle(bundle)
    assert (manifest.engine, manifest.lowerings) == ("cuda", {})
    assert manifest.cuda is not None
    assert manifest.cuda.version == manifest.libraries["mm2c_plugins"] == "0.1.0+0123456789ab"
    assert [rank.program for rank in manifest.cuda.ranks] == ["rank0/cuda.json", "rank1/cuda.json"]
    assert {manifest.cuda.library, manifest.cuda.host} <= set(manifest.files)
    assert "runtime/mm2c_plugins/__init__.py" in manifest.files
    assert "runtime/mm2c_plugins/host/library.py" in manifest.files
    assert not [name for name in manifest.files if name.endswith(".cpp") or "kernels" in name]
    assert manifest.limits.context == 2048  # the model's
    for rank in range(2):
        stated = program(bundle, rank)
        assert (stated["rank"], stated["ranks"], stated["library"]) == (rank, 2, manifest.cuda.version)
        kv = {"layers": 1, "kv_heads": 2, "head_dim": 128, "page": 64, "dtype": "bf16"}
        assert stated["kv"] == manifest.cuda.ranks[rank].kv.model_dump() == kv
        with safe_open(bundle / f"rank{rank}" / "weights.safetensors", "np") as stored:
            shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
        assert shapes == {name: entry["shape"] for name, entry in stated["weights"].items()}
        assert set(read_recipes(bundle / f"rank{rank}" / "weights.safetensors")) == set(shapes)


def test_views_of_the_joined_projections_tell_their_stride(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, "--tp", 2, "-o", tmp_path / "b")
    nodes = {node["op"]: node for node in program(tmp_path / "b")["nodes"]}
    strides = {k: v for k, v in nodes["M2PagedAttention"]["attributes"].items() if k.endswith("_stride")}
    assert strides == {"q_stride": 768, "k_stride": 768, "v_stride": 768}
    assert nodes["M2QkSumSquares"]["attributes"] == {"q_stride": 768, "k_stride": 768}
    assert nodes["M2DenseLinear"]["attributes"] == {"out_dtype": "f32"}
    assert nodes["Cast"]["attributes"]["to"] == "i64"


def test_the_same_again_is_the_same_bundle(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, "-o", tmp_path / "a")
    assert build(checkpoint, "-o", tmp_path / "a")["up_to_date"] is True
    report = build(checkpoint, "-o", tmp_path / "b")
    assert report["reused"] == ["graphs of 1 rank(s)", "weights"]
    assert build(checkpoint, "--no-cache", "-o", tmp_path / "c")["reused"] == []
    texts = {(tmp_path / name / "manifest.json").read_bytes() for name in "abc"}
    assert len(texts) == 1


def test_another_library_is_another_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(checkpoint, "-o", tmp_path / "a")
    monkeypatch.setenv("MM2C_PLUGINS", str(write_library(tmp_path / "lib", version="0.1.0+ba9876543210")))
    text = refused("build", checkpoint, "--engine", "cuda", "-o", tmp_path / "a")
    assert "--force" in text
    build(checkpoint, "--force", "-o", tmp_path / "a")
    assert program(tmp_path / "a")["library"] == "0.1.0+ba9876543210"


def test_an_fp8_cache_and_other_options(checkpoint: Path, tmp_path: Path) -> None:
    options = ("--kv-dtype", "fp8", "--all-logits", "--context", 100, "--max-rows", 3, "--prefill-chunk", 70)
    report = build(checkpoint, *options, "-o", tmp_path / "a")
    stated = program(tmp_path / "a")
    assert stated["kv"]["dtype"] == "fp8"
    assert stated["logits"] == "all"
    assert (stated["context"], stated["max_rows"], stated["prefill_chunk"]) == (100, 3, 70)
    assert report["memory"]["tokens"] == 3 * 128  # whole pages
    assert report["memory"]["ranks"][0]["kv_bytes_per_token"] == 2 * 4 * 128
    weights = (tmp_path / "a" / "rank0" / "weights.safetensors").stat().st_size
    assert report["memory"]["ranks"][0]["weights_bytes"] == pytest.approx(weights, rel=0.02)


def test_inspect_shows_the_programs(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, "--tp", 2, "--kv-dtype", "fp8", "-o", tmp_path / "a")
    facts = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path / "a"), "--json"]).stdout)
    assert (facts["engine"], facts["plugins"], facts["kv_dtype"]) == ("cuda", "0.1.0+0123456789ab", "fp8")
    assert facts["kv_bytes_per_token"] == 2 * 4 * 128
    assert [(r["lowering"], r["all_reduces"], r["all_gathers"]) for r in facts["ranks"]] == [
        ("cuda", 4, 0)  # the runtime gathers the best tokens of each rank instead of logits
    ] * 2
    assert facts["collectives"]["matches"]
    assert facts["collectives"]["messages"][-1]["name"] == "lm_head.candidates.all_gather"
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "a")])
    assert shown.exit_code == 0, shown.output
    assert "plugins   0.1.0+0123456789ab" in shown.output


def test_graphs_alone_need_no_library(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM2C_PLUGINS", str(tmp_path / "nothing"))
    build(checkpoint / "config.json", "--tp", 2, "--config-only", "-o", tmp_path / "graphs")
    manifest = read_manifest(tmp_path / "graphs")
    assert (manifest.engine, manifest.cuda, manifest.checkpoint) == ("cuda", None, None)
    facts = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path / "graphs"), "--json"]).stdout)
    assert facts["graphs"][1]["ops"]["M2PagedAttention"] == 1
    assert facts["kv_dtype"] == "bf16"


def test_a_library_that_is_not_built_is_said_before_any_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM2C_PLUGINS", str(tmp_path / "nothing"))
    text = refused("build", checkpoint, "--engine", "cuda", "-o", tmp_path / "a")
    assert "make plugins" in text
    assert not (tmp_path / "a").exists()


def test_what_needs_a_gpu_says_so(checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "a"
    build(checkpoint, "-o", bundle)
    for verb in (["serve", bundle], ["chat", "--local", bundle, "--message", "Hello"]):
        text = refused(*verb)
        assert "this machine has no NVIDIA GPU" in text
        assert "--engine onnxruntime" in text
    text = refused("verify", bundle, "--golden")
    assert "the bundle has no golden vectors" in text


@pytest.mark.parametrize(
    ("engine", "dtype"), [("onnxruntime", "fp8"), ("onnxruntime", "bf16"), ("cuda", "f32"), ("cuda", "int8")]
)
def test_a_cache_dtype_that_the_engine_has_not(
    checkpoint: Path, tmp_path: Path, engine: str, dtype: str
) -> None:
    text = refused("build", checkpoint, "--engine", engine, "--kv-dtype", dtype, "-o", tmp_path / "a")
    assert f"--kv-dtype {dtype}: the {engine} engine keeps its KV cache in" in text


def test_a_model_without_kernels_is_refused_or_left_to_the_cpu(
    random_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = random_checkpoint(layers=1, head_dim=64, rotary_dim=32, quant="bf16", seed=3)
    text = refused("build", other, "--engine", "cuda", "-o", tmp_path / "a")
    assert "no kernels for head_dim 64 (the kernels have 128); rotary_dim 32" in text
    monkeypatch.setattr(select, "find_gpu", lambda: select.Gpu("NVIDIA H200", "9.0"))
    report = build(other, "-o", tmp_path / "a", engine="auto")
    assert report["engine"] == "onnxruntime"
    assert "NVIDIA H200 is here" in report["reason"]
    assert "head_dim 64" in report["reason"]


def test_auto_on_a_gpu_machine_builds_cuda(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "find_gpu", lambda: select.Gpu("NVIDIA H200", "9.0"))
    report = build(checkpoint, "-o", tmp_path / "a", engine="auto")
    assert report["engine"] == read_manifest(tmp_path / "a").engine == "cuda"
    assert "compute capability 9.0" in report["reason"]
