"""--bf16 and --fp8 for the cuda engine: layer by layer the reference with the converted weights, and by the executor's
own path the CPU engine's answers; experts whose scale blocks a rank's slice cuts included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_reference import SamplingOps, build_cuda_bundle
from paged_driver import Driver, close, greedy, logits_of

from mm2c.config import WeightTarget
from mm2c.pipeline import BuildRequest, build_bundle
from mm2c.progress import Quiet
from mm2c.verify.run_streamed import verify_layers
from mm2c_runtime.executors.cuda import CudaExecutor
from mm2c_runtime.executors.cuda.program import read_program
from mm2c_runtime.executors.cuda.recipe_weights import load_from_checkpoint, open_recipes
from mm2c_runtime.executors.cuda.weights import load_weights, open_weights
from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
from mm2c_runtime.manifest_file import read_bundle, read_manifest
from mm2c_runtime.ranks.executor import RankedExecutor
from mm2c_runtime.weights.checkpoint import StoredCheckpoint

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES: dict[str, Any] = dict(context=64, max_rows=4, prefill_chunk=16)
# A rank of two has 192 of the experts' 384 rows, one and a half scale blocks; the vocabulary is odd.
SHAPE: dict[str, Any] = dict(layers=2, intermediate=384, experts=4, top_k=2, vocab=517, seed=51)
PROMPTS = [[5, 90, 17, 33, 260, 8, 41], [44, 7, 500, 2]]


def experts_of(bundle: Path, rank: int = 0) -> dict[str, Any]:
    """Op and attributes of the first layer's experts."""
    program = read_program(bundle / f"rank{rank}" / "cuda.json")
    node = next(node for node in program.nodes if node.op.startswith("M2Moe"))
    return {"op": node.op, **node.attributes}


@pytest.mark.parametrize(
    ("quant", "target", "options"),
    [
        ("fp8", "bf16", {"tp": 1}),
        ("fp8", "bf16", {"tp": 2}),
        ("mixed", "bf16", {"tp": 2, "ep": 2}),
        ("mixed", "bf16", {"dp": 2, "ep": 2}),
        ("bf16", "bf16", {"tp": 2}),
        ("bf16", "fp8", {"tp": 1}),
        ("bf16", "fp8", {"tp": 2}),
        ("bf16", "fp8", {"tp": 2, "ep": 2, "kv_dtype": "fp8"}),
        ("bf16", "fp8", {"tp": 2, "weights": "checkpoint"}),
        ("mixed", "fp8", {"tp": 1}),
        ("mixed", "fp8", {"tp": 2}),
    ],
)
def test_every_layer_is_the_references_with_the_converted_weights(
    random_checkpoint: Callable[..., Path],
    tmp_path: Path,
    quant: str,
    target: WeightTarget,
    options: dict[str, Any],
) -> None:
    checkpoint = random_checkpoint(**SHAPE, quant=quant)
    bundle = build_cuda_bundle(
        checkpoint, tmp_path / "bundle", tmp_path / "library", **SIZES, **options, **{target: True}
    )
    manifest = read_bundle(bundle)
    assert manifest.weight_format == target
    assert manifest.checkpoint is not None
    assert manifest.checkpoint.format == quant
    experts, cut = experts_of(bundle, manifest.mapping.ranks - 1), options.get("ep", 1) < options.get("tp", 1)
    assert experts["op"] == ("M2MoeFp8" if target == "fp8" else "M2MoeBf16")
    if target == "fp8":
        assert (experts["block_n"], experts["block_k"]) == (64 if cut else 128, 128)
    quantised = (bundle / "report" / "quantization.json").exists()
    assert quantised == (target == "fp8" and quant != "fp8")
    outcome = verify_layers(bundle, None, "all", Quiet())
    assert outcome.passed, [r.as_json() for r in outcome.streamed.results if not r.passed]
    assert all(r.relative < 3e-6 for r in outcome.streamed.results if r.dtype == "f32")


def test_the_report_is_that_of_the_cpu_engines_build(
    random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Slices and layouts change nothing: a checkpoint tensor is quantised whole, in blocks of 128."""
    checkpoint = random_checkpoint(**SHAPE, quant="bf16")
    bundle = build_cuda_bundle(checkpoint, tmp_path / "cuda", tmp_path / "library", tp=2, fp8=True, **SIZES)
    request = BuildRequest(source=str(checkpoint), output=tmp_path / "cpu", cache=False, fp8=True, **SIZES)
    build_bundle(request, Quiet())
    found, expected = (
        json.loads((folder / "report" / "quantization.json").read_text())
        for folder in (bundle, request.output)
    )
    assert found["total"]["tensors"] == expected["total"]["tensors"]
    assert found["total"]["relative_rms"] == pytest.approx(expected["total"]["relative_rms"], rel=1e-6)


@pytest.fixture(scope="module", params=[("fp8", "bf16"), ("mixed", "fp8")], ids="-".join)
def converted(
    request: pytest.FixtureRequest,
    random_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """A bundle of the same conversion for either engine, at any cut."""
    quant, target = request.param
    checkpoint, made = random_checkpoint(**SHAPE, quant=quant), {}

    def build(engine: str, tp: int) -> Path:
        if (engine, tp) not in made:
            folder = tmp_path_factory.mktemp(engine)
            options: dict[str, Any] = {**SIZES, "tp": tp, target: True}
            if engine == "cuda":
                build_cuda_bundle(checkpoint, folder / "bundle", folder / "library", **options)
            else:
                output = folder / "bundle"
                request = BuildRequest(
                    source=str(checkpoint), output=output, engine=engine, cache=False, **options
                )
                build_bundle(request, Quiet())
            made[engine, tp] = folder / "bundle"
        return made[engine, tp]

    return build


def test_the_executor_answers_as_the_cpu_engines(converted: Callable[..., Path]) -> None:
    bundle, cpu = converted("cuda", 1), converted("onnxruntime", 1)
    oracle = OnnxRuntimeExecutor(cpu, read_manifest(cpu), threads=1)
    executor = CudaExecutor(bundle, read_manifest(bundle), device="cpu", ops=SamplingOps())
    for prompt in PROMPTS:
        close(logits_of(Driver(executor), prompt, 5), logits_of(Driver(oracle), prompt, 5))
    oracle.close()
    executor.close()


def test_two_ranks_answer_as_one(converted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As processes over gloo, each with its slices."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "fixtures"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bundle, two = converted("cuda", 1), converted("cuda", 2)
    manifest = read_manifest(two)
    assert manifest.cuda is not None
    assert manifest.cuda.head == "candidates"
    single = CudaExecutor(bundle, read_manifest(bundle), device="cpu", ops=SamplingOps())
    ranked = RankedExecutor(
        two, devices=["cpu"] * 2, backend="gloo", kv_tokens=256, ops="cuda_reference:SamplingOps"
    )
    try:
        for prompt in PROMPTS:
            close(logits_of(Driver(ranked), prompt, 5), logits_of(Driver(single), prompt, 5))
            best = int(logits_of(Driver(ranked), prompt).argmax())
            assert greedy(Driver(ranked), [prompt], 0) == [[best]]  # of candidates, not of gathered logits
    finally:
        ranked.close()
        single.close()


@pytest.mark.parametrize(("quant", "target"), [("fp8", "bf16"), ("bf16", "fp8"), ("mixed", "fp8")])
def test_tensors_made_while_loading_are_those_of_the_files(
    random_checkpoint: Callable[..., Path], tmp_path: Path, quant: str, target: WeightTarget
) -> None:
    checkpoint = random_checkpoint(**SHAPE, quant=quant)
    options: dict[str, Any] = {**SIZES, "tp": 2, target: True}
    copy, bare = (
        build_cuda_bundle(checkpoint, tmp_path / weights, tmp_path / "library", weights=weights, **options)
        for weights in ("copy", "checkpoint")
    )
    manifest = read_bundle(bare)
    assert manifest.checkpoint is not None
    assert manifest.cuda is not None
    assert not list(bare.rglob("rank*/*.safetensors"))
    cpu = torch.device("cpu")
    with StoredCheckpoint.open(checkpoint, manifest.checkpoint) as stored:
        for rank in manifest.cuda.ranks:
            program = read_program(bare / rank.program)
            wanted = load_weights(open_weights(copy / rank.weights, program.weights), cpu)
            recipes = open_recipes(bare / rank.weights, program.weights, stored)
            found = load_from_checkpoint(recipes, stored, cpu)
            assert found.keys() == wanted.keys()
            for name, tensor in wanted.items():
                assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
