"""Plans against ONNX Runtime through Polygraphy: the script of a bundle, its inputs, and the comparison."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan_bundle import make_plan_bundle

from mm2c.bundle.polygraphy_files import INPUTS, LEAST_SNR, comparisons, script_of, write_polygraphy
from mm2c.errors import UserError
from mm2c.progress import Quiet
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.plan_step import choose, inputs_of


@pytest.fixture(scope="module")
def bundles(
    random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One rank; two ranks whose head is gathered; pages and plugin nodes; no weights."""
    pytest.importorskip("torch")
    checkpoint = random_checkpoint(layers=2, kv_heads=2, vocab=300, seed=5)
    root = tmp_path_factory.mktemp("plans")
    kinds: dict[str, dict[str, Any]] = {
        "one": {},
        "two": {"tp": 2, "rows": 20, "all_logits": True, "layers_per_plan": 2},
        "paged": {"tp": 2, "engine": "tensorrt", "weights": False, "layers_per_plan": 0},
    }
    for name, options in kinds.items():
        program = make_plan_bundle(root / name, checkpoint, **options).tensorrt
        assert program is not None
        write_polygraphy(root / name, program)
    return {name: root / name for name in kinds}


def need_polygraphy() -> None:
    """Without importing it: when it is imported it looks which TensorRT it speaks to."""
    if find_spec("polygraphy") is None:
        pytest.skip("needs Polygraphy (the extra verify)")


def run(bundle: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    need_polygraphy()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    script = str(bundle / "report" / "polygraphy.sh")
    return subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=False)


def program_of(bundle: Path) -> Any:
    return read_manifest(bundle).tensorrt


def test_the_script_names_each_plan_with_each_profile(bundles: dict[str, Path]) -> None:
    assert comparisons(program_of(bundles["one"])) == [
        ("decode.0", 0, 0, 0), ("decode.1", 0, 0, 1), ("prefill.0", 0, 0, 0), ("prefill.1", 0, 0, 1),
    ]  # fmt: skip
    assert ("prefill.0", 1, 0, 0) in comparisons(program_of(bundles["two"]))
    for bundle in bundles.values():
        script = bundle / "report" / "polygraphy.sh"
        assert script.stat().st_mode & stat.S_IXUSR
        assert "@" not in script.read_text().replace('"${failed[@]}"', "").replace("[@]", "")
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "USE_TENSORRT_RTX=1" in script_of(program_of(bundles["one"]))
    assert "USE_TENSORRT_RTX=0" in script_of(program_of(bundles["paged"]))


def test_the_onnx_runtime_half_runs(bundles: dict[str, Path], tmp_path: Path) -> None:
    need_polygraphy()
    result = run(bundles["one"], "onnxrt", "decode.1", WORK=str(tmp_path), ROWS="2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "PASSED: 1 (onnxrt)" in result.stdout
    assert "is valid" in result.stdout  # Polygraphy looked for NaN and infinity
    assert json.loads((tmp_path / "decode.1.0.rank0.json").read_text())


def test_without_a_gpu_that_half_is_what_runs(bundles: dict[str, Path], tmp_path: Path) -> None:
    need_polygraphy()
    result = run(bundles["one"], "", "decode.1", WORK=str(tmp_path), ROWS="2", CUDA_VISIBLE_DEVICES="")
    if shutil.which("nvidia-smi") is None:
        assert result.returncode == 0, result.stdout + result.stderr
        assert "no NVIDIA GPU is here" in result.stderr
        assert "PASSED: 1 (onnxrt)" in result.stdout


def test_a_gathered_head_and_pages_run_alone(bundles: dict[str, Path], tmp_path: Path) -> None:
    need_polygraphy()
    for name, plan in (("two", "prefill.0"), ("paged", "step.0")):
        result = run(bundles[name], "onnxrt", plan, "1", WORK=str(tmp_path / name), RANK="1", TOKENS="3")
        assert result.returncode == 0, result.stdout + result.stderr
        assert (tmp_path / name / f"{plan}.1.rank1.json").is_file()


def test_the_script_refuses_what_is_not_there(bundles: dict[str, Path], tmp_path: Path) -> None:
    assert "no plan is called decode.9" in run(bundles["one"], "onnxrt", "decode.9").stderr
    assert "polygraphy.sh [onnxrt|tensorrt|both]" in run(bundles["one"], "gpu").stderr
    missing = run(bundles["one"], "onnxrt", POLYGRAPHY="no-polygraphy-here")
    assert (missing.returncode, "pip install polygraphy" in missing.stderr) == (2, True)
    first = run(bundles["one"], "tensorrt", "decode.0", WORK=str(tmp_path))
    assert first.returncode == 1
    assert "run the half onnxrt" in first.stderr
    large = run(bundles["one"], "onnxrt", "decode.0", ROWS="3")
    assert large.returncode == 1
    assert "outside profile decode" in large.stderr


STUB = """#!/usr/bin/env bash
echo "rtx=$POLYGRAPHY_USE_TENSORRT_RTX $*" >> "$CALLS"
previous=
for word in "$@"; do
  if [ "$previous" = --save-outputs ]; then echo '[]' > "$word"; fi
  previous=$word
done
case "$*" in *"$FAILS"*) exit 1 ;; esac
"""


def test_the_tensorrt_half_runs_plans_or_builds_what_runs_alone(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    stub, calls = tmp_path / "polygraphy", tmp_path / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)
    built = tmp_path / "built"
    shutil.copytree(bundles["one"], built)
    (built / "plans" / "decode.1.plan").write_bytes(b"plan")

    def called(bundle: Path, *arguments: str, fails: str = "nothing") -> tuple[int, list[str]]:
        calls.write_text("")
        variables = {
            "POLYGRAPHY": str(stub),
            "CALLS": str(calls),
            "FAILS": fails,
            "WORK": str(tmp_path / "w"),
        }
        done = run(bundle, *arguments, **variables)
        return done.returncode, calls.read_text().splitlines()

    status, (reference, engine) = called(built, "both", "decode.1")
    assert status == 0
    assert "--onnxrt" in reference
    for word in ("rtx=1", f"{built}/plans/decode.1.plan", "--model-type engine --optimization-profile 0",
                 "polygraphy_inputs.py:tensorrt_inputs", "--compare snr --snr-threshold 20"):  # fmt: skip
        assert word in engine
    status, (_, alone) = called(bundles["two"], "both", "prefill.0", "0")
    assert status == 0
    for word in (
        "--strongly-typed",
        ":postprocess",
        "--trt-min-shapes input_ids:[17,1]",
        "prefill.0.0.rank0.onnx",
    ):
        assert word in alone
    status, (_, paged) = called(bundles["paged"], "both", "step.0", "1")
    assert (status, paged.startswith("rtx=0")) == (0, True)
    assert "block_table:[1,1]" in paged
    assert called(built, "both", "decode.1", fails="--model-type engine")[0] == 1
    status, only = called(built, "both", "decode.1", fails="--onnxrt")  # nothing to compare with
    assert (status, len(only)) == (1, 1)


def test_inputs_are_the_plans_own(bundles: dict[str, Path]) -> None:
    for name, bundle in bundles.items():
        for plan, profile, rank, layer in comparisons(program_of(bundle)):
            step = choose(bundle, plan, profile=profile, rank=rank, first_layer=layer)
            found = inputs_of(step)
            assert list(found) == [tensor.name for tensor in step.plan.tensors if tensor.mode == "input"], (
                name
            )
            for tensor in step.plan.tensors:
                if tensor.mode == "input":
                    assert found[tensor.name].shape == step.shape(tensor)
            if "block_table" in found:
                pages = found["block_table"].ravel().tolist()
                assert sorted(pages) == list(range(step.symbols["pages"]))


def test_weights_are_those_of_the_rank_and_the_layer(bundles: dict[str, Path]) -> None:
    first, second = (
        inputs_of(choose(bundles["one"], "decode.1", first_layer=layer, seed=seed))
        for layer, seed in ((1, 0), (None, 1))
    )
    name = "layers.0.mlp.experts.down_proj"
    assert np.array_equal(first[name].view(np.uint8), second[name].view(np.uint8))
    assert not np.array_equal(first["hidden.0"], second["hidden.0"])
    ranks = [inputs_of(choose(bundles["two"], "decode.0", rank=rank)) for rank in (0, 1)]
    assert not np.array_equal(ranks[0][name].view(np.uint8), ranks[1][name].view(np.uint8))


@pytest.mark.parametrize(
    ("plan", "options", "words"),
    [
        ("decode.7", {}, "no plan"),
        ("decode.0", {"rank": 4}, "no plan"),
        ("decode.0", {"profile": 1}, "profiles 0 to 0"),
        ("decode.0", {"first_layer": 1}, "from layers"),
        ("decode.0", {"tokens": 2}, "outside profile"),
    ],
)
def test_a_step_that_cannot_be(bundles: dict[str, Path], plan: str, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(bundles["one"], plan, **options)


def test_weights_of_another_shape_are_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundles["one"], other)
    (other / "rank0" / "weights.safetensors").write_bytes(
        (bundles["two"] / "rank0" / "weights.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match="the weights have"):
        inputs_of(choose(other, "decode.0"))


def test_the_script_of_a_bundle_needs_no_mm2c(bundles: dict[str, Path], tmp_path: Path) -> None:
    """With the bundle's own runtime; the compiler is not imported."""
    bundle = tmp_path / "alone"
    shutil.copytree(bundles["one"], bundle)
    runtime = Path(__file__).resolve().parents[2] / "model_repo" / "runtime"
    shutil.copytree(runtime, bundle / "runtime" / "mm2c_runtime")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import polygraphy_inputs as p, mm2c_runtime\n"
        "assert mm2c_runtime.__file__.startswith(sys.argv[2]), mm2c_runtime.__file__\n"
        "assert 'mm2c' not in sys.modules\n"
        "sys.exit(p.main(['onnxrt', sys.argv[3]]))"
    )
    arguments = [str(bundle / "report"), str(bundle), str(tmp_path / "graph.onnx")]
    environment = {**os.environ, "PLAN": "decode.0"}
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True)
    assert (tmp_path / "graph.onnx").stat().st_size
    assert (bundle / "report" / INPUTS).is_file()


def runners(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with Polygraphy told that it speaks to TensorRT-RTX."""
    need_polygraphy()
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (the extra rtx)")
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    from mm2c.verify import polygraphy_runners

    return polygraphy_runners


def test_bf16_passes_and_a_wrong_network_does_not(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    module = runners(monkeypatch)
    base = pytest.importorskip("polygraphy.backend.base")

    class Rounded(base.BaseRunner):  # type: ignore[misc, name-defined]
        """In place of TensorRT's runner: f32 results rounded to bf16, with an input changed before."""

        def __init__(self, step: Any, change: str) -> None:
            super().__init__(name="TensorRT", prefix="double")
            self.step, self.change = step, change

        def activate_impl(self) -> None:
            return

        def get_input_metadata_impl(self) -> Any:
            from polygraphy.common import TensorMetadata
            from polygraphy.datatype import DataType

            found = TensorMetadata()
            types = {"bf16": DataType.BFLOAT16, "e4m3": DataType.FLOAT8E4M3FN, "f32": DataType.FLOAT32}
            types |= {"i32": DataType.INT32, "i64": DataType.INT64}
            for tensor in self.step.plan.tensors:
                if tensor.mode == "input":
                    found.add(tensor.name, types[tensor.dtype], self.step.shape(tensor))
            return found

        def infer_impl(self, feed_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            import onnxruntime

            feeds = {}
            for name, value in feed_dict.items():
                wide = {torch.bfloat16: torch.float32, torch.float8_e4m3fn: torch.float16}.get(value.dtype)
                feeds[name] = value.to(wide or value.dtype).numpy()
            if self.change:
                feeds[self.change] = feeds[self.change][..., ::-1].copy()
            session = onnxruntime.InferenceSession(module.onnxrt_graph(self.step).SerializeToString())
            names = [value.name for value in session.get_outputs()]
            made = session.run(names, feeds)
            self.inference_time = 1.0
            return {name: torch.from_numpy(value).bfloat16() for name, value in zip(names, made, strict=True)}

    step = choose(bundles["one"], "prefill.1", tokens=8)
    expected = module.reference_results(step)
    module.know_fp8()

    def ratios(change: str) -> dict[str, float]:
        found = module.results_of(Rounded(step, change), module.tensorrt_feed(step), step)
        values: dict[str, float] = module.ratios(expected, found)
        return values

    same = ratios("")
    assert set(same) == {tensor.name for tensor in step.plan.tensors if tensor.mode == "output"}
    assert min(same.values()) > 40
    for wrong in ("layers.0.mlp.experts.down_proj", "hidden.0", "layers.0.self_attn.o_proj.weight"):
        assert min(ratios(wrong).values()) < LEAST_SNR


def test_the_graph_without_collectives_builds(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = runners(monkeypatch)
    import tensorrt_rtx

    step = choose(bundles["two"], "decode.0")
    assert len(module._built(step, tensorrt_rtx)) > 10_000
    with pytest.raises(UserError, match="TensorRT cannot run"):  # there is no GPU to load it
        module.compare_step(step, tensorrt_rtx, True)


def test_every_plan_is_compared_and_summed_up(bundles: dict[str, Path]) -> None:
    from mm2c.verify import polygraphy_run
    from mm2c.verify.polygraphy_run import compare_plans, summary

    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (the extra rtx)")
    asked = []

    def double(step: Any, trt: Any, own_build: bool) -> dict[str, float]:
        asked.append((step.plan.name, step.rank.rank, own_build))
        return {
            "hidden_out.0": 31.5,
            "logits": float("nan") if step.plan.name == "prefill.1" else float("inf"),
        }

    manifest = read_manifest(bundles["one"])
    outcome = compare_plans(bundles["one"], manifest, Quiet(), compare=double)
    assert asked == [(name, 0, True) for name in ("decode.0", "decode.1", "prefill.0", "prefill.1")]
    assert [result.passed for result in outcome.results] == [True, True, True, False]
    assert not outcome.passed
    assert "1 of 4 FAILED" in summary(outcome)
    facts = json.loads(json.dumps(outcome.as_json(), allow_nan=False))
    assert facts["results"][0]["snr"] == {"hidden_out.0": 31.5, "logits": None}
    assert polygraphy_run.why_not(manifest) == "there is no GPU here"


def test_why_plans_cannot_be_run_here(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from mm2c.engine.select import Gpu
    from mm2c.verify import polygraphy_run

    monkeypatch.setattr(polygraphy_run, "find_gpu", lambda: Gpu("NVIDIA H200", "9.0"))
    manifest = read_manifest(bundles["one"])

    def changed(**update: Any) -> Manifest:
        program = program_of(bundles["one"]).model_copy(update=update)
        return manifest.model_copy(update={"tensorrt": program})

    assert "H200 has 9.0" in polygraphy_run.why_not(changed(target=["12.0"]))
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (the extra rtx)")
    assert "built by version 9.9.9" in polygraphy_run.why_not(changed(version="9.9.9"))
    monkeypatch.setattr(polygraphy_run, "find_spec", lambda name: None)
    assert polygraphy_run.why_not(manifest) == "Polygraphy is not installed"
    assert "no TensorRT plans" in polygraphy_run.why_not(manifest.model_copy(update={"tensorrt": None}))
