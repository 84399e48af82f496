"""Plans against ONNX Runtime through Polygraphy: the script of a bundle, and its inputs."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polygraphy_bundles import need_polygraphy, program_of

from mm2c.bundle.polygraphy_files import INPUTS, comparisons, script_of
from mm2c_runtime.plan_step import choose, inputs_of


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
