"""TensorRT bundles without a GPU: the networks that its parser makes of their graphs compute the model, at every
layout, and a bundle that TensorRT would not compute so does not pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cuda_reference import without_library
from plan_graphs import (
    alter_plans,
    nodes_of,
    normalise_along_tokens,
    share_a_name,
    use_nonpad_kv_seqlen,
)
from remembering import RememberingReference
from resealed import alter_tensor, copied
from typer.testing import CliRunner, Result

import mm2c.verify.polygraphy_run
import mm2c.verify.reference
import mm2c.verify.run_network
from mm2c.cli.main import app
from mm2c.errors import UserError
from mm2c.pipeline import BuildRequest, build_bundle
from mm2c.progress import Quiet
from mm2c.verify.network_compare import StageResult
from mm2c.verify.polygraphy_run import PlanComparison, PolygraphyOutcome
from mm2c.verify.run_network import NetworkOutcome, verify_network
from mm2c.verify.run_streamed import REPORT
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.selfcheck_golden import GOLDEN

pytestmark = pytest.mark.usefixtures("one_thread", "_library", "_one_reference")
SIZES = dict(context=128, max_rows=3, prefill_chunk=16)
STEPS, ROWS = 2, 3
FEW = dict(steps=1, rows=2)


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra rtx) is not installed")


@pytest.fixture
def _one_reference(monkeypatch: pytest.MonkeyPatch, references: dict[Path, RememberingReference]) -> None:
    """The demo checkpoint's answers, made once."""

    def remembered(checkpoint: Any, weight_format: Any = "stored") -> RememberingReference:
        if checkpoint.folder not in references:
            references[checkpoint.folder] = RememberingReference(checkpoint)
        return references[checkpoint.folder]

    monkeypatch.setattr(mm2c.verify.reference, "Reference", remembered)


def build(checkpoint: Path, output: Path, **options: Any) -> Path:
    request = BuildRequest(
        source=str(checkpoint),
        output=output,
        **{"engine": "tensorrt-rtx", "cache": False, "defer_plan": True, **SIZES, **options},
    )
    build_bundle(request)
    return output


def build_paged(checkpoint: Path, folder: Path, **options: Any) -> Path:
    """For TensorRT 11, with an empty file for its plugin library."""
    with without_library(folder / "library"):
        return build(checkpoint, folder / "bundle", engine="tensorrt", **options)


@pytest.fixture(scope="module")
def single(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory, _library: None) -> Path:
    return build(tiny_m2, tmp_path_factory.mktemp("single") / "bundle")


@pytest.fixture(scope="module")
def four(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory, _library: None) -> Path:
    return build(tiny_m2, tmp_path_factory.mktemp("four") / "bundle", tp=4, layers_per_plan=2)


def verified(bundle: Path, checkpoint: Path, **options: Any) -> NetworkOutcome:
    return verify_network(bundle, str(checkpoint), Quiet(), **{"steps": STEPS, "rows": ROWS, **options})


def failed(outcome: NetworkOutcome) -> set[tuple[str, str]]:
    return {(r.precision, r.case) for r in outcome.stages if not r.passed}


def check_figures(outcome: NetworkOutcome, stages: int) -> None:
    assert outcome.passed, [r for r in outcome.stages if not r.passed] or outcome.results
    cases = {"prefill", "chunked prefill", "decode"}
    kinds = {(r.precision, r.case, r.stage) for r in outcome.stages}
    assert kinds == {(p, case, n) for p in ("wide", "declared") for case in cases for n in range(stages)}
    assert {(r.lowering, r.case) for r in outcome.results} == {
        (lane, case) for lane in ("ONNX Runtime", "TensorRT's network") for case in cases
    }
    wide = [r for r in outcome.stages if r.precision == "wide"]
    assert max(r.relative for r in wide) < 1e-5  # measured: 3e-6
    assert all(r.left_out == 0 for r in wide)
    declared = [r for r in outcome.stages if r.precision == "declared"]
    assert max(r.steps for r in declared) > 0.3  # rounded indeed
    assert max(r.relative for r in outcome.results) < 1e-5
    assert outcome.plans is None
    assert outcome.not_run == "there is no GPU here"


def test_one_gpu(single: Path, tiny_m2: Path) -> None:
    outcome = verified(single, tiny_m2)
    check_figures(outcome, stages=1)
    assert outcome.networks == 2
    assert outcome.layers > 1000


def test_four_ranks_in_two_stages(four: Path, tiny_m2: Path) -> None:
    outcome = verified(four, tiny_m2)
    check_figures(outcome, stages=2)
    assert outcome.networks == 4  # of four ranks: their graphs are equal


def test_experts_on_different_ranks(tiny_m2: Path, tmp_path: Path) -> None:
    """The ranks' graphs differ."""
    bundle = build(tiny_m2, tmp_path / "bundle", tp=2, ep=2, layers_per_plan=1)
    check_figures(verified(bundle, tiny_m2, steps=2, rows=2), stages=3)


def test_pages(tiny_m2: Path, tmp_path: Path) -> None:
    """Graphs whose plugins are not there: their bodies are compared."""
    bundle = build_paged(tiny_m2, tmp_path, tp=2)
    outcome = verified(bundle, tiny_m2)
    check_figures(outcome, stages=1)
    assert outcome.networks == 1  # one plan with two profiles


def test_a_cache_of_e4m3(tiny_m2: Path, tmp_path: Path) -> None:
    """The network rounds as ONNX Runtime does; with caches of f32 the same graph is the model."""
    outcome = verified(build_paged(tiny_m2, tmp_path, kv_dtype="fp8"), tiny_m2, **FEW)
    assert outcome.passed
    assert {r.lowering for r in outcome.results} == {"ONNX Runtime, f32 cache"}
    assert max(r.relative for r in outcome.results) < 1e-5


def test_streamed_reference_and_goldens(four: Path, tiny_m2: Path, tmp_path: Path) -> None:
    bundle = copied(four, tmp_path / "bundle")
    outcome = verified(bundle, tiny_m2, streamed_tokens=20, write=True)
    assert outcome.passed
    assert {r.case for r in outcome.stages} == {"prefill", "decode"}
    assert {GOLDEN, REPORT} <= read_manifest(bundle).files.keys()


def test_nonpad_kv_seqlen_is_found(single: Path, tiny_m2: Path, tmp_path: Path) -> None:
    """ONNX Runtime computes the model, TensorRT's parser drops the input."""
    bundle = copied(single, tmp_path / "bundle")
    alter_plans(bundle, use_nonpad_kv_seqlen, only="decode")
    outcome = verified(bundle, tiny_m2, **FEW)
    assert not outcome.passed
    assert ("wide", "decode") in failed(outcome)
    assert all(r.passed for r in outcome.results if r.lowering == "ONNX Runtime")
    assert worst(outcome).relative > 0.01


def test_two_functions_of_one_name_are_found(single: Path, tiny_m2: Path, tmp_path: Path) -> None:
    bundle = copied(single, tmp_path / "bundle")
    alter_plans(bundle, share_a_name)
    try:
        outcome = verified(bundle, tiny_m2, **FEW)
    except BundleError as error:
        assert "does not take a plan's graph" in str(error)  # noqa: PT017
        return
    assert {("wide", "decode"), ("wide", "prefill")} <= failed(outcome)
    assert all(r.passed for r in outcome.results if r.lowering == "ONNX Runtime")


def test_a_wrong_axis_is_found(four: Path, tiny_m2: Path, tmp_path: Path) -> None:
    """In the plan's graph alone, and only where a row has several tokens."""
    bundle = copied(four, tmp_path / "bundle")
    alter_plans(bundle, normalise_along_tokens, only="prefill.0", wide=False)
    outcome = verified(bundle, tiny_m2, **FEW)
    assert {("wide", "prefill"), ("wide", "chunked prefill")} <= failed(outcome)
    assert next(r for r in outcome.stages if not r.passed).stage == 0


def test_a_graph_that_is_wrong_in_itself_is_found(single: Path, tiny_m2: Path, tmp_path: Path) -> None:
    """Both runtimes agree on it: transformers does not."""
    bundle = copied(single, tmp_path / "bundle")

    def pair_neighbours(model: Any) -> None:
        for node in nodes_of(model, "RotaryEmbedding"):
            node.attribute.add(name="interleaved", type=2, i=1)

    alter_plans(bundle, pair_neighbours)
    outcome = verified(bundle, tiny_m2, **FEW)
    assert all(r.passed for r in outcome.stages if r.precision == "wide")
    assert not any(r.passed for r in outcome.results if r.case != "prefill" and r.lowering == "ONNX Runtime")
    assert not outcome.tensors  # the stored tensors are as they should be


def test_an_altered_weight_is_found(four: Path, tiny_m2: Path, tmp_path: Path) -> None:
    bundle = copied(four, tmp_path / "bundle")
    name = "model.layers.2.mlp.experts.down_proj"

    def negate(codes: Any) -> None:
        codes[:] ^= 0x80

    alter_tensor(bundle, "rank3/weights.safetensors", name, negate)
    outcome = verified(bundle, tiny_m2, **FEW)
    assert not outcome.passed
    assert all(r.passed for r in outcome.stages if r.precision == "wide")
    assert any(name in tensor and "rank 3" in tensor for tensor in outcome.tensors)


def test_a_layer_that_cannot_be_evaluated_is_no_pass(
    single: Path, tiny_m2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm2c.verify.network.layers import LAYERS

    monkeypatch.delitem(LAYERS, "TOPK")
    with pytest.raises(BundleError, match=r"cannot be evaluated, which proves nothing.*TOPK"):
        verified(single, tiny_m2)


def test_another_engine_has_no_networks(cpu_bundle: Path, tiny_m2: Path) -> None:
    with pytest.raises(UserError, match="a bundle for the onnxruntime engine has none"):
        verified(cpu_bundle, tiny_m2)


def test_the_command_says_what_was_compared(
    four: Path, tiny_m2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with a GPU it runs the plans too."""
    ran = PolygraphyOutcome(
        "TensorRT-RTX 9", [PlanComparison("decode.0", "decode", 0, 0, 2, 1, False, {"y": 31.5})]
    )
    monkeypatch.setattr(mm2c.verify.polygraphy_run, "why_not", lambda manifest: "")
    monkeypatch.setattr(mm2c.verify.polygraphy_run, "compare_plans", lambda *given: ran)
    bundle = copied(four, tmp_path / "bundle")
    few = ("--against", tiny_m2, "--rows", 2, "--steps", 1)
    result = command("verify", bundle, *few, "--engine", "tensorrt-rtx", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["passed"]
    assert found["engine"] == "tensorrt-rtx"
    assert found["plans"]["results"][0]["snr"] == {"y": 31.5}
    assert {stage["precision"] for stage in found["stages"]} == {"wide", "declared"}
    report = json.loads((bundle / "report" / "verify.json").read_text())
    assert report["kind"] == "network replay"
    assert report["networks"] == 4


def test_the_command_names_what_is_wrong(
    single: Path, tiny_m2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    bundle = copied(single, tmp_path / "bundle")
    alter_plans(bundle, share_a_name)
    alter_tensor(bundle, "rank0/weights.safetensors", "model.norm.weight", lambda raw: raw.__setitem__(0, 0))
    result = command("verify", bundle, "--against", tiny_m2, "--rows", 1, "--steps", 1)
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert "there is no GPU here" in result.stdout
    assert (
        "layers 0-2, decode: TensorRT's network (decode.0) is not what its ONNX graph says" in result.stderr
    )
    assert "not what the checkpoint makes it: rank 0: model.norm.weight" in result.stderr
    assert not (bundle / "report" / "verify.json").exists()


def test_the_command_refuses(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = command("verify", single, "--engine", "cuda")
    assert result.exit_code == 2
    assert "the bundle is for the tensorrt-rtx engine" in result.stderr
    assert command("verify", single, "--layers", "0").exit_code == 2
    monkeypatch.setattr(mm2c.verify.run_network, "available_bytes", lambda: 1 << 20)
    result = command("verify", single)
    assert result.exit_code == 2
    assert "the caches of one row of 128 tokens" in result.stderr
    assert "--layers-per-plan" in result.stderr


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def worst(outcome: NetworkOutcome) -> StageResult:
    return max(outcome.stages, key=lambda r: r.relative if r.precision == "wide" else 0.0)
