"""Golden vectors: written where the reference is, compared without it, and before an engine process is ready."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_reference import build_cuda_bundle
from resealed import copied, reseal
from typer.testing import CliRunner

from mm2c.checkpoint import Checkpoint
from mm2c.cli.main import app
from mm2c.pipeline import BuildRequest, build_bundle
from mm2c.progress import Quiet
from mm2c.verify.golden_file import GoldenWriter
from mm2c.verify.run import verify_checkpoint
from mm2c.verify.run_streamed import compare_golden, verify_layers
from mm2c.verify.script import make_script
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest_file import read_bundle
from mm2c_runtime.selfcheck_golden import GOLDEN, read_golden
from mm2c_runtime.server.launcher import EngineProcess

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = dict(layers=2, intermediate=256, experts=8, top_k=2, vocab=517, seed=51)
SIZES = dict(context=64, max_rows=4, prefill_chunk=16)
REFERENCE_OPS = "mm2c.verify.reference_ops:ReferenceOps"


@pytest.fixture(scope="module")
def built(random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without goldens."""
    output = tmp_path_factory.mktemp("ort") / "bundle"
    source = str(random_checkpoint(**SHAPE))
    build_bundle(BuildRequest(source=source, output=output, engine="onnxruntime", cache=False, tp=2, **SIZES))
    return output


@pytest.fixture(scope="module")
def bundle(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with goldens."""
    folder = copied(built, tmp_path_factory.mktemp("golden") / "bundle")
    assert verify_layers(folder, None, "all", Quiet(), write=True).golden
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_bundle_stays_what_it_was(built: Path, bundle: Path) -> None:
    before, after = read_bundle(built), read_bundle(bundle)
    assert after.build_key == before.build_key
    assert set(after.files) - set(before.files) == {GOLDEN, "report/verify.json"}
    assert run("inspect", bundle).exit_code == 0
    report = json.loads((bundle / "report/verify.json").read_text("utf-8"))
    assert {r["engine"] for r in report["results"]} == {"onnxruntime, fast", "onnxruntime, portable"}


def test_writing_twice_changes_nothing(bundle: Path) -> None:
    def state() -> dict[str, Any]:
        return {
            str(p): (p.read_bytes(), p.stat().st_ino)
            for p in (bundle / "manifest.json", *(bundle / "report").iterdir())
        }

    first = state()
    verify_layers(bundle, None, "all", Quiet(), write=True)
    assert state() == first


def test_goldens_hold_the_references_values(bundle: Path, random_checkpoint: Callable[..., Path]) -> None:
    import torch

    from mm2c.verify.reference import Reference

    golden = read_golden(bundle)
    assert golden is not None
    assert golden.about["dtype"] == "f32"
    assert golden.about["checkpoint"]["identity"] == read_bundle(bundle).checkpoint.identity  # type: ignore[union-attr]
    reference = Reference(Checkpoint.open(random_checkpoint(**SHAPE)))
    for row in golden.rows:
        states = reference.hidden_states(list(row.ids))
        for layer, state in enumerate(states):
            np.testing.assert_allclose(row.hidden[layer], state[row.positions].numpy(), atol=3e-5)
        with torch.inference_mode():
            logits = reference.model(input_ids=torch.tensor([row.ids])).logits[0, row.prompt - 1 :]
        np.testing.assert_allclose(row.logits, logits.numpy(), atol=5e-5)


def test_goldens_of_the_whole_model_are_as_good(built: Path, bundle: Path, tmp_path: Path) -> None:
    folder = copied(built, tmp_path / "bundle")
    assert verify_checkpoint(folder, None, "all", steps=3, rows=4, progress=Quiet(), write=True).passed
    outcomes = compare_golden(folder, "all", Quiet())
    assert [o.runs for o in outcomes] == ["fast", "portable"]
    assert all(o.passed and o.figures for o in outcomes)
    golden = read_golden(folder)
    assert golden is not None
    assert [row.prompt for row in golden.rows] == [1, 7, 16]
    assert golden.rows[1].hidden.shape == (3, 9, 128)


def test_inspect_tells_of_both(built: Path, bundle: Path) -> None:
    text = " ".join(run("inspect", bundle).stdout.split())
    assert "verify passed: streamed, " in text
    assert "% of what is allowed" in text
    assert "golden vectors of " in text
    found = json.loads(run("inspect", bundle, "--json").stdout)
    assert found["verified"]["passed"]
    assert found["verified"]["reference"]["dtype"] == "f32"
    assert found["golden"]["rows"] > 0
    bare = json.loads(run("inspect", built, "--json").stdout)
    assert bare["verified"] is bare["golden"] is None


def test_a_bundle_verified_without_writing_has_none(built: Path) -> None:
    answer = run("verify", built, "--streamed", "--no-write", "--tokens", 8, "--json")
    assert answer.exit_code == 0
    found = json.loads(answer.stdout)
    assert found["passed"]
    assert not found["golden"]
    assert found["peak_rss_bytes"] > 0
    assert not (built / GOLDEN).exists()
    assert run("verify", built, "--golden").exit_code == 2


def test_goldens_are_compared_without_the_checkpoint_torch_and_transformers(
    bundle: Path, tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "from mm2c.cli.main import app\n"
        f"app(['verify', {str(bundle)!r}, '--golden', '--json'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert all(outcome["passed"] for outcome in outcomes)
    assert len(outcomes[0]["results"]) == 9


@pytest.fixture(scope="module")
def wrong(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Goldens that the engine does not reach: their logits are another model's."""
    folder = copied(bundle, tmp_path_factory.mktemp("wrong") / "bundle")
    golden = read_golden(folder)
    assert golden is not None
    for row in golden.rows:
        row.logits[:] = np.roll(row.logits, 1, axis=-1)
    (folder / GOLDEN).write_bytes(golden.to_bytes())
    reseal(folder, GOLDEN)
    return folder


def test_an_engine_that_is_off_fails(wrong: Path) -> None:
    answer = run("verify", wrong, "--golden")
    assert answer.exit_code == 1
    assert "FAIL" in answer.stdout


def start(
    bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, check: str, **more: Any
) -> EngineProcess:
    monkeypatch.setenv("MM2C_SELF_CHECK", check)
    monkeypatch.setenv("MM2C_CACHE", str(folder / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [
        sys.executable,
        "-m",
        "mm2c_runtime.server.process",
        "--bundle",
        str(bundle),
        *more.get("extra", []),
    ]
    engine = EngineProcess("", str(folder / "e.sock"), command=command)
    engine.start()
    return engine


@pytest.mark.parametrize("check", ["always", "first"])
def test_an_engine_process_checks_itself_before_it_is_ready(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    engine = start(bundle, tmp_path, monkeypatch, check)
    try:
        engine.wait_ready(60)
        assert list((tmp_path / "cache/selfcheck").iterdir())
    finally:
        engine.stop()


def test_an_engine_process_that_is_off_is_never_ready(
    wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(wrong, tmp_path, monkeypatch, "always")
    try:
        with pytest.raises(BundleError):
            engine.wait_ready(60)
    finally:
        engine.stop()
    command = [sys.executable, "-m", "mm2c_runtime.server.process", "--bundle", str(wrong)]
    command += ["--socket", str(tmp_path / "s"), "--self-check", "first"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False
    )
    assert done.returncode == 1
    assert "golden positions are off" in done.stderr
    engine = start(wrong, tmp_path, monkeypatch, "never")
    try:
        engine.wait_ready(60)
    finally:
        engine.stop()


@pytest.mark.parametrize(("tp", "ep", "dp"), [(1, 1, 1), (2, 2, 1), (1, 2, 2)])
def test_the_cuda_engine_by_references(
    random_checkpoint: Callable[..., Path], tmp_path: Path, tp: int, ep: int, dp: int
) -> None:
    checkpoint = random_checkpoint(**SHAPE)
    folder = build_cuda_bundle(
        checkpoint, tmp_path / "bundle", tmp_path / "lib", tp=tp, ep=ep, dp=dp, **SIZES
    )
    answer = run("verify", folder, "--json")  # layer by layer without being asked
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["golden"]
    (outcome,) = compare_golden(folder, "all", Quiet(), ops=REFERENCE_OPS)
    assert outcome.passed, outcome.as_json()
    assert sum(f.judged for f in outcome.figures) >= 3
    assert max(f.error for f in outcome.figures if f.judged) > 1e-4  # it is not the reference itself


def test_shards_are_put_together_again(built: Path, tmp_path: Path) -> None:
    answer = run("verify", built, "--shards", "--json")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["passed"]
    folder = copied(built, tmp_path / "bundle")
    path = folder / "rank1/weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)  # the manifest is not asked
    answer = run("verify", folder, "--shards")
    assert answer.exit_code == 1
    assert "rank1/weights.safetensors" in answer.output
    assert run("verify", built, "--shards", "--golden").exit_code == 2


def test_the_golden_file_has_a_limit(bundle: Path) -> None:
    import torch

    manifest = read_bundle(bundle)
    script = make_script(manifest.model.vocab, 64, 4, 16, 40)
    for limit in (0, 20_000, 40_000, 64_000_000):
        writer = GoldenWriter(script, manifest, limit)
        for _ in range(3):
            writer.add_hidden([torch.zeros(len(row.ids), 128) for row in script.rows])
        pieces = [piece for step in script.steps for piece in step.pieces]
        writer.add_logits({piece: np.zeros(517, np.float32) for piece in pieces})
        golden = writer.golden()
        assert golden.rows
        assert len(golden.to_bytes()) <= max(limit, 3 * 517 * 4) + 4000
    assert len(golden.rows) == 3
    assert golden.rows[0].hidden.shape == (3, len(golden.rows[0].ids), 128)


def test_memory_does_not_grow_with_the_experts(tmp_path: Path) -> None:
    """A layer of 1.1 GB of experts in fp32, of which few are there at a time."""
    from full_width_checkpoint import write_full_width_checkpoint

    checkpoint = write_full_width_checkpoint(tmp_path / "wide", layers=1, vocab=2048, experts=20)
    folder = build_cuda_bundle(
        checkpoint, tmp_path / "bundle", tmp_path / "lib", weights="checkpoint", **{**SIZES, "context": 128}
    )
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from mm2c.checkpoint import Checkpoint\n"
        "from mm2c.progress import Quiet\n"
        "from mm2c.verify.script import make_script\n"
        "from mm2c.verify.streamed import verify_streamed\n"
        "from mm2c_runtime.manifest_file import read_bundle\n"
        "bundle, checkpoint = map(Path, sys.argv[1:])\n"
        "found = verify_streamed(bundle, read_bundle(bundle), Checkpoint.open(checkpoint), [],\n"
        "    make_script(2048, 128, 4, 16, 4), Quiet(), memory=1)\n"
        "print(json.dumps([found.passed, found.peak_rss, found.experts]))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(checkpoint)],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    passed, peak, experts = json.loads(done.stdout)
    assert passed
    assert experts[0] >= 8
    assert peak < 1.3 * 2**30
    shutil.rmtree(checkpoint)
