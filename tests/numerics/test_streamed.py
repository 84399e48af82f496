"""Layer by layer against the unmodified decoder layers: the streamed reference is the whole model, every layout of both
engines passes, and what is wrong in one layer is found there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_reference import build_cuda_bundle
from resealed import alter_tensor, copied

from mm2c.checkpoint import Checkpoint
from mm2c.pipeline import BuildRequest, build_bundle
from mm2c.progress import Quiet
from mm2c.verify.expert_stacks import ExpertCache
from mm2c.verify.layer_error import LayerResult
from mm2c.verify.reference import Reference
from mm2c.verify.run_streamed import verify_layers
from mm2c.verify.script import make_script
from mm2c.verify.streamed import Streamed, verify_streamed
from mm2c.verify.streamed_reference import StreamedReference
from mm2c_runtime.executors.cuda.program import Head, read_program
from mm2c_runtime.manifest_file import read_bundle

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = dict(context=64, max_rows=4, prefill_chunk=16)
FP8 = dict(layers=2, intermediate=256, experts=8, top_k=2, vocab=517, seed=41)
BF16 = dict(layers=2, hidden=192, heads=8, kv_heads=2, head_dim=32, rotary_dim=16, intermediate=96, experts=8,
            top_k=3, vocab=300, quant="bf16", seed=42)  # fmt: skip
YARN = dict(layers=2, hidden=128, heads=4, kv_heads=4, head_dim=64, rotary_dim=32, intermediate=256, experts=4, top_k=1,
            vocab=512, context=1024, quant="mixed", seed=43,
            rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256})  # fmt: skip


@dataclass(frozen=True)
class Layout:
    name: str
    shape: dict[str, Any]
    engine: str
    tp: int = 1
    ep: int = 1
    options: tuple[tuple[str, Any], ...] = ()


LAYOUTS = (
    Layout("ort-fp8-tp2", FP8, "onnxruntime", 2),
    Layout("ort-bf16-single", BF16, "onnxruntime"),
    Layout("ort-fp8-tp4-ep2", FP8, "onnxruntime", 4, 2),
    Layout("ort-bf16-kv-replicated", BF16, "onnxruntime", 4, 4),
    Layout("ort-fp8-attention-dp", FP8, "onnxruntime", 2, 4, (("dp", 2),)),
    Layout("ort-from-checkpoint", FP8, "onnxruntime", 2, 1, (("weights", "checkpoint"),)),
    Layout("cuda-fp8-single", FP8, "cuda"),
    Layout("cuda-fp8-tp2", FP8, "cuda", 2),
    Layout("cuda-fp8-tp4-ep2", FP8, "cuda", 4, 2),
    Layout("cuda-blocks-of-64", FP8, "cuda", 4),
    Layout("cuda-fp8-attention-dp", FP8, "cuda", 1, 2, (("dp", 2),)),
    Layout("cuda-fp8-attention-dp-tp2", FP8, "cuda", 2, 4, (("dp", 4),)),
    Layout("cuda-fp8-kv", FP8, "cuda", 2, 2, (("kv_dtype", "fp8"),)),
    Layout("cuda-from-checkpoint", FP8, "cuda", 2, 2, (("weights", "checkpoint"),)),
)


def build(layout: Layout, checkpoint: Path, folder: Path) -> Path:
    options = {**SIZES, **dict(layout.options), "tp": layout.tp, "ep": layout.ep}
    output = folder / "bundle"
    if layout.engine == "cuda":
        return build_cuda_bundle(checkpoint, output, folder / "library", **options)
    request = BuildRequest(
        source=str(checkpoint), output=output, engine="onnxruntime", cache=False, **options
    )
    build_bundle(request)
    return output


def compare(bundle: Path, checkpoint: Path, tokens: int = 24, **more: Any) -> Streamed:
    manifest = read_bundle(bundle)
    limits = manifest.limits
    script = make_script(
        manifest.model.vocab,
        limits.context,
        limits.max_rows,
        limits.prefill_chunk,
        tokens,
        manifest.mapping.attention_dp,
    )
    with Checkpoint.open(checkpoint) as opened:
        return verify_streamed(bundle, manifest, opened, list(manifest.lowerings), script, Quiet(), **more)


@pytest.mark.parametrize("shape", [FP8, BF16, YARN], ids=["fp8", "bf16", "mixed-yarn"])
def test_the_streamed_reference_is_the_whole_unmodified_model(
    shape: dict[str, Any], random_checkpoint: Callable[..., Path]
) -> None:
    from transformers import DynamicCache

    checkpoint = Checkpoint.open(random_checkpoint(**shape))
    script = make_script(checkpoint.config.vocab, 64, 4, 16, 30)
    streamed = StreamedReference(checkpoint, cache=ExpertCache(1))  # one expert at a time
    hidden = streamed.embed(script)
    layers = []
    for number in range(checkpoint.config.layers):
        layers.append(hidden := streamed.run_layer(number, script, hidden).hidden)
    logits = streamed.logits(script, hidden)

    model = Reference(checkpoint).model
    made: list[Any] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, given, out: made.append(out[0]))
    caches = [DynamicCache(config=model.config) for _ in script.rows]
    with torch.inference_mode():
        for piece in [piece for step in script.steps for piece in step.pieces]:
            ids = torch.tensor([script.rows[piece.row].ids[piece.start : piece.stop]])
            made.clear()
            whole = model(
                input_ids=ids, past_key_values=caches[piece.row], use_cache=True, logits_to_keep=1
            ).logits[0, -1]
            for ours, theirs in zip(layers, made, strict=True):
                assert torch.equal(ours[piece.row][piece.start : piece.stop], theirs)
            assert (whole - logits[piece]).abs().max() <= 1e-6 * whole.abs().max()
    assert {layer.__module__ for layer in map(type, model.model.layers)} == {
        "transformers.models.minimax_m2.modeling_minimax_m2"
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.name for layout in LAYOUTS])
def test_every_layer_of_every_layout_is_the_references(
    layout: Layout, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(**layout.shape)
    found = compare(build(layout, checkpoint, tmp_path), checkpoint)
    assert found.passed, [r.as_json() for r in found.results if not r.passed]
    engines = {r.engine for r in found.results}
    expected = {"cuda program, fp32", "cuda program, as stored"}
    assert engines == (
        expected if layout.engine == "cuda" else {"onnxruntime, fast", "onnxruntime, portable"}
    )
    assert len(found.results) == len(engines) * (layout.shape["layers"] + 2)
    exact = [r for r in found.results if r.dtype == "f32"]
    assert all(r.compared and r.relative < 3e-6 and not r.flips for r in exact)
    assert all(r.chain <= 1e-5 * r.scale for r in exact)
    for result in found.results:
        if result.dtype != "f32" and result.layer.isdigit():
            assert result.error > 0
            assert result.compared + result.ties > 0


@pytest.fixture(scope="module")
def cuda_tp2(random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(Layout("", FP8, "cuda", 2), random_checkpoint(**FP8), tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module")
def ort_tp2(random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(Layout("", FP8, "onnxruntime", 2), random_checkpoint(**FP8), tmp_path_factory.mktemp("ort"))


def flip_one_byte(raw: Any) -> None:
    """The sign of a weight that every token meets."""
    raw[5, 7] ^= 0x80


def swap_gate_and_up(raw: Any) -> None:
    half = raw.shape[1] // 2
    raw[:] = np.concatenate([raw[:, half:], raw[:, :half]], axis=1)


def swap_blocks(raw: Any) -> None:
    raw[:, [0, 1]] = raw[:, [1, 0]]


def shift(raw: Any) -> None:
    raw[:] = np.roll(raw, 1, axis=0)


ATTENTION, EXPERTS = "self_attn.", "mlp.experts."
MUTATIONS = {
    "one byte": (ATTENTION + "qkv_proj.weight", flip_one_byte, "attention"),
    "gate and up swapped": (EXPERTS + "gate_up_proj", swap_gate_and_up, "experts"),
    "another scale block": (EXPERTS + "gate_up_proj_scale_inv", swap_blocks, "experts"),
    "a wrong slice of the K norm": (ATTENTION + "k_norm.weight", shift, "attention"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("layer", [0, 1])
def test_what_is_wrong_in_a_layer_is_found_there(
    mutation: str, layer: int, cuda_tp2: Path, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    tensor, change, part = MUTATIONS[mutation]
    bundle = copied(cuda_tp2, tmp_path / "bundle")
    name = f"model.layers.{layer}.{tensor}"
    alter_tensor(bundle, "rank1/weights.safetensors", name, change)
    found = compare(bundle, random_checkpoint(**FP8))
    failed = [r for r in found.results if not r.passed and r.dtype == "f32"]
    assert [r.layer for r in failed if r.layer != "logits"] == [str(layer)]
    result = failed[0]
    assert result.part == part
    assert [t.startswith(f"rank 1: {name}, ") for t in result.tensors] == [True]
    assert failed[-1].layer == "logits"  # the chain carries it there


def test_a_flipped_byte_is_found_by_onnxruntime_too(
    ort_tp2: Path, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = copied(ort_tp2, tmp_path / "bundle")
    alter_tensor(bundle, "rank1/weights.safetensors", "model.layers.1.self_attn.o_proj.weight", flip_one_byte)
    found = compare(bundle, random_checkpoint(**FP8))
    failed: list[LayerResult] = [r for r in found.results if not r.passed and r.layer != "logits"]
    assert [(r.engine, r.layer, r.part) for r in failed] == [("onnxruntime, portable", "1", "attention")]
    assert failed[0].tensors == ("rank 1: model.layers.1.self_attn.o_proj.weight, row 5",)


def test_a_wrong_recipe_is_found_though_the_bytes_agree_with_it(
    cuda_tp2: Path, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """The program is at fault: another norm epsilon, which no stored byte tells."""
    from resealed import reseal

    bundle = copied(cuda_tp2, tmp_path / "bundle")
    for rank in ("rank0", "rank1"):
        path = bundle / rank / "cuda.json"
        text = path.read_text("utf-8")
        assert '"first_expert": 0' in text or '"first_expert":0' in text
        before, name, after = text.partition("model.layers.1.post_attention_layernorm.add_norm")
        changed = after.replace("1e-06", "1e-02", 1)
        assert changed != after
        path.write_text(before + name + changed, "utf-8")
        reseal(bundle, f"{rank}/cuda.json")
    found = compare(bundle, random_checkpoint(**FP8))
    failed = [r for r in found.results if not r.passed and r.dtype == "f32" and r.layer != "logits"]
    assert [(r.layer, r.part, r.tensors) for r in failed] == [("1", "experts", ())]


def test_a_head_whose_logits_are_not_gathered(
    cuda_tp2: Path, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Each rank has logits of its own part, the second one column of padding beside: the same head, and what is wrong
    in one rank's part is found."""
    manifest = read_bundle(cuda_tp2)
    assert manifest.cuda is not None
    assert manifest.cuda.head == "candidates"
    heads = [read_program(cuda_tp2 / rank.program).head for rank in manifest.cuda.ranks]
    assert heads == [Head(0, 259, 259), Head(259, 258, 259)]
    assert compare(cuda_tp2, random_checkpoint(**FP8)).passed
    bundle = copied(cuda_tp2, tmp_path / "bundle")
    alter_tensor(bundle, "rank1/weights.safetensors", "lm_head.weight", shift)
    found = compare(bundle, random_checkpoint(**FP8))
    assert {r.layer for r in found.results if not r.passed} == {"logits"}


def test_some_layers_alone(cuda_tp2: Path, random_checkpoint: Callable[..., Path]) -> None:
    outcome = verify_layers(cuda_tp2, None, "all", Quiet(), tokens=10, layers="1", write=False)
    assert outcome.passed
    assert [r.layer for r in outcome.streamed.results if r.dtype == "f32"] == ["embedding", "1", "logits"]
    assert not outcome.golden
