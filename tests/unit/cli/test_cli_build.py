"""`mm2c build` and `mm2c inspect` on a random checkpoint, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from mm2c.bundle.fresh import difference_of
from mm2c.checkpoint import Checkpoint
from mm2c.cli.main import app
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe_file import read_recipes

MM2C = str(Path(sys.executable).with_name("mm2c"))


@pytest.fixture(scope="module")
def built(
    random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(checkpoint, bundle at tp 2), built by the command line with a cache of its own."""
    root = tmp_path_factory.mktemp("cli")
    os.environ["MM2C_CACHE"] = str(root / "cache")
    checkpoint = random_checkpoint(layers=1, intermediate=256, seed=11)
    result = CliRunner().invoke(
        app, ["build", str(checkpoint), "--tp", "2", "--fp8", "-o", str(root / "bundle")]
    )
    assert result.exit_code == 0, result.output
    assert "no NVIDIA GPU" in result.output or "onnxruntime" in result.output
    return checkpoint, root / "bundle"


def build(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(app, ["build", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_the_same_again_is_up_to_date(built: tuple[Path, Path]) -> None:
    checkpoint, bundle = built
    before = (bundle / "manifest.json").stat().st_mtime_ns
    assert build(checkpoint, "--tp", 2, "--fp8", "-o", bundle)["up_to_date"] is True
    assert (bundle / "manifest.json").stat().st_mtime_ns == before


def test_another_output_reuses_the_stages_and_is_the_same_bundle(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint, bundle = built
    report = build(checkpoint, "--tp", 2, "--fp8", "-o", tmp_path / "again")
    assert report["reused"] == ["graphs of 2 rank(s)", "weights"]
    assert report["made"] == []
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()


def test_a_build_without_cache_is_byte_for_byte_the_same(built: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = built
    report = build(checkpoint, "--tp", 2, "--fp8", "--no-cache", "-o", tmp_path / "fresh")
    assert report["reused"] == []
    assert (tmp_path / "fresh" / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()


def test_another_bundle_is_known_as_such_without_reading_it_through(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bundle = built
    read: list[Path] = []
    monkeypatch.setattr("mm2c.bundle.fresh.check_contents", lambda folder, files: read.append(folder))
    assert difference_of(bundle, "0" * 64).startswith("of another checkpoint")
    assert not read
    assert difference_of(bundle, read_manifest(bundle).build_key) == ""
    assert read == [bundle]


def test_other_options_at_the_same_output_need_force(built: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, _ = built
    build(checkpoint, "--fp8", "-o", tmp_path / "x")
    refused = CliRunner().invoke(
        app, ["build", str(checkpoint), "--context", "64", "-o", str(tmp_path / "x")]
    )
    assert refused.exit_code == 2
    assert "--force" in refused.output
    assert build(checkpoint, "--context", 64, "--force", "-o", tmp_path / "x")["up_to_date"] is False


def test_force_mends_an_altered_bundle_and_only_force_does(built: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = built
    build(checkpoint, "--tp", 2, "--fp8", "-o", tmp_path / "x")
    weights = tmp_path / "x" / "rank0" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused = CliRunner().invoke(
        app, ["build", str(checkpoint), "--tp", "2", "--fp8", "-o", str(tmp_path / "x")]
    )
    assert refused.exit_code == 2
    assert "rank0/weights.safetensors was altered" in refused.output
    assert build(checkpoint, "--tp", 2, "--fp8", "--force", "-o", tmp_path / "x")["up_to_date"] is False
    assert weights.read_bytes() == (bundle / "rank0" / "weights.safetensors").read_bytes()
    assert build(checkpoint, "--tp", 2, "--fp8", "--force", "-o", tmp_path / "x")["up_to_date"] is True


def test_in_the_checkpoints_folder_nothing_need_be_said(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--MiniMaxAI--MiniMax-M2.7" / "snapshots" / "0123abc"
    shutil.copytree(built[0], snapshot)
    monkeypatch.chdir(snapshot)
    assert build("--tp", 2, "--fp8")["output"] == str(snapshot / "MiniMax-M2.7-tp2")
    assert build("--tp", 2, "--fp8")["up_to_date"] is True  # the bundle inside does not change the checkpoint


def test_an_empty_folder_needs_no_force(built: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, _ = built
    (tmp_path / "x").mkdir()
    assert build(checkpoint, "--tp", 2, "-o", tmp_path / "x")["up_to_date"] is False


def test_recipes_lie_beside_every_weight_file(built: tuple[Path, Path]) -> None:
    checkpoint, bundle = built
    for weights in bundle.glob("rank*/*.safetensors"):
        recipes = read_recipes(weights)
        with safe_open(weights, "np") as stored:
            assert set(recipes) == set(stored.keys())
            for name, recipe in recipes.items():
                assert tuple(stored.get_slice(name).get_shape()) == recipe.shape
    gate_up = read_recipes(bundle / "rank1" / "weights.safetensors")[
        "model.layers.0.mlp.experts.gate_up_proj"
    ]
    reader = Checkpoint.open(checkpoint)
    expected = reader.read("model.layers.0.block_sparse_moe.experts.0.w1.weight")[128:]
    assert evaluate(gate_up, reader)[0, :128].tobytes() == expected.tobytes()


def test_an_altered_manifest_is_found_out_and_mended(built: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, _ = built
    build(checkpoint, "-o", tmp_path / "x")
    path = tmp_path / "x" / "manifest.json"
    whole = path.read_text()
    path.write_text(whole.replace('"max_rows": 8', '"max_rows": 1'))
    for verb in (["inspect", str(tmp_path / "x")], ["build", str(checkpoint), "-o", str(tmp_path / "x")]):
        refused = CliRunner().invoke(app, verb)
        assert refused.exit_code == 2
        assert "manifest.json was altered" in refused.output
    assert build(checkpoint, "--force", "-o", tmp_path / "x")["up_to_date"] is False
    assert path.read_text() == whole


def test_the_memory_plan_is_reported_and_kept(built: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = built
    plan = json.loads((bundle / "report" / "memory.json").read_text())
    stored = (bundle / "rank0" / "weights.safetensors").stat().st_size
    assert plan["gpu"]["ranks"][1]["weights_bytes"] == pytest.approx(
        stored, rel=0.02
    )  # its header comes on top
    assert plan["cpu"]["total_bytes"] > plan["cpu"]["weights_bytes"]
    report = build(checkpoint / "config.json", "--tp", 2, "--config-only", "-o", tmp_path / "graphs")
    memory = report["memory"]
    assert isinstance(memory, dict)
    assert len(memory["ranks"]) == 2
    assert memory == json.loads((tmp_path / "graphs" / "report" / "memory.json").read_text())["gpu"]


def test_inspect_tells_layout_and_collectives(built: tuple[Path, Path]) -> None:
    _, bundle = built
    result = CliRunner().invoke(app, ["inspect", str(bundle), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["mapping"]["tp"] == 2
    assert {r["all_reduces"] for r in facts["ranks"]} == {4}  # one behind the embedding, three a layer
    assert {r["all_gathers"] for r in facts["ranks"]} == {1}
    assert {r["kv_heads"] for r in facts["ranks"]} == {2}
    assert facts["kv_bytes_per_token"] == 2 * 4 * 128 * 4
    shown = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert "all-reduces" in shown.output


def test_config_only_writes_graphs_of_all_ranks(built: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, _ = built
    build(checkpoint / "config.json", "--tp", 2, "--config-only", "-o", tmp_path / "graphs")
    assert sorted(p.name for p in (tmp_path / "graphs").glob("rank*")) == ["rank0", "rank1"]
    assert not list((tmp_path / "graphs").rglob("*.safetensors"))


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing_half_written(
    built: tuple[Path, Path], tmp_path: Path, signal_: signal.Signals
) -> None:
    checkpoint, _ = built
    command = [MM2C, "build", str(checkpoint), "--no-cache", "-o", str(tmp_path / "bundle")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.building-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal_)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if signal_ != signal.SIGKILL else -9), output
    assert "Traceback" not in output
    assert not (tmp_path / "bundle").exists()
    if signal_ == signal.SIGKILL:  # no chance to clean up: the next build sweeps
        build(checkpoint, "-o", tmp_path / "bundle")
        assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    else:
        assert list(tmp_path.iterdir()) == []


KILLED_MIDWAY = """
import os, signal, sys
from mm2c_runtime import checksums
from mm2c.weights import commit, outputs, units, writer
checksums.CHUNK = outputs.CHUNK = writer.CHUNK = 65536
commit._PAUSE = 0.0
left = int(sys.argv.pop(1))
real = writer.Journal.append
def append(self, records):
    global left
    for record in records:
        real(self, [record])
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
writer.Journal.append = append
from mm2c.cli.main import app
app()
"""


def small_chunks(after: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`mm2c` with chunks of 64 KiB, killed when that many of them are safe on the disk."""
    command = [sys.executable, "-c", KILLED_MIDWAY, str(after), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_build_killed_in_the_middle_of_the_weights_is_gone_on_with(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint, _ = built
    never = 10**9
    whole = small_chunks(never, "build", checkpoint, "--tp", 2, "--no-cache", "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    arguments = ("build", checkpoint, "--tp", 2, "--no-cache", "-o", tmp_path / "bundle")
    assert small_chunks(5, *arguments).returncode == -signal.SIGKILL
    (stage,) = tmp_path.glob(".bundle.building-*")
    assert (stage / ".weights.journal").is_file()
    done = small_chunks(never, *arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming an interrupted build" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "whole"]
    first, second = (
        {p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (tmp_path / "whole", tmp_path / "bundle")
    )
    assert first == second


def test_a_killed_build_of_other_options_is_swept(built: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, _ = built
    output = tmp_path / "bundle"
    assert small_chunks(3, "build", checkpoint, "--no-cache", "-o", output).returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".bundle.building-*"))
    done = small_chunks(10**9, "build", checkpoint, "--tp", 2, "--no-cache", "-o", output)
    assert done.returncode == 0, done.stderr
    assert "resuming" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
