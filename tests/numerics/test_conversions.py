"""--bf16 and --fp8: bundles of converted weights equal transformers with the same converted weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm2c.checkpoint import Checkpoint
from mm2c.config import WeightTarget
from mm2c.pipeline import BuildRequest, build_bundle
from mm2c.progress import Quiet
from mm2c.verify.reference import Reference
from mm2c.verify.run import verify_checkpoint
from mm2c_runtime.manifest_file import read_bundle
from mm2c_runtime.weights.dtypes import NUMPY

SHAPE = dict(
    layers=2, hidden=256, heads=8, kv_heads=4, head_dim=64, rotary_dim=32, intermediate=256, experts=4
)
ODD = dict(layers=2, hidden=200, heads=4, kv_heads=2, head_dim=48, rotary_dim=24, intermediate=136, experts=4)


def built(checkpoint: Path, output: Path, **options: Any) -> Path:
    build_bundle(
        BuildRequest(source=str(checkpoint), output=output, context=128, cache=False, **options), Quiet()
    )
    return output


@pytest.mark.parametrize(
    ("shape", "quant", "target", "tp", "ep"),
    [
        (SHAPE, "fp8", "bf16", 1, 1),
        (SHAPE, "fp8", "bf16", 2, 2),
        (ODD, "mixed", "bf16", 1, 1),
        (SHAPE, "bf16", "fp8", 1, 1),
        (SHAPE, "bf16", "fp8", 2, 1),
        (ODD, "bf16", "fp8", 1, 1),
        (SHAPE, "mixed", "fp8", 2, 2),
    ],
)
def test_logits_equal_transformers_with_the_converted_weights(
    random_checkpoint: Callable[..., Path],
    tmp_path: Path,
    shape: dict[str, Any],
    quant: str,
    target: WeightTarget,
    tp: int,
    ep: int,
) -> None:
    checkpoint = random_checkpoint(**shape, quant=quant, seed=41)
    bundle = built(checkpoint, tmp_path / "bundle", tp=tp, ep=ep, **{target: True})
    manifest = read_bundle(bundle)
    assert manifest.weight_format == target
    assert manifest.checkpoint is not None
    assert manifest.checkpoint.format == quant
    outcome = verify_checkpoint(bundle, None, "all", steps=8, rows=3, progress=Quiet())
    assert outcome.passed, outcome.as_json()


def test_the_reference_of_bf16_is_rounded_once(random_checkpoint: Callable[..., Path]) -> None:
    """Our own recipes fill the reference: here the conversion is written out."""
    with Checkpoint.open(random_checkpoint(**SHAPE, quant="fp8", seed=41)) as checkpoint:
        state = Reference(checkpoint, "bf16").model.state_dict()
        name = "model.layers.1.self_attn.k_proj.weight"
        weight, scale = (checkpoint.read(key).astype(np.float32) for key in (name, f"{name}_scale_inv"))
    n, k = weight.shape
    wanted = (weight * scale[np.arange(n) // 128][:, np.arange(k) // 128]).astype(NUMPY["bf16"])
    np.testing.assert_array_equal(state[name].numpy(), wanted.astype(np.float32))
    assert np.abs(wanted.astype(np.float32) - weight).max() > 0


@pytest.mark.parametrize("shape", [SHAPE, ODD])
def test_the_reference_of_fp8_is_quantised_by_blocks(
    random_checkpoint: Callable[..., Path], shape: dict[str, Any]
) -> None:
    from m2_layout import dequantize_blocks, quantize_blocks

    with Checkpoint.open(random_checkpoint(**shape, quant="bf16", seed=41)) as checkpoint:
        state = Reference(checkpoint, "fp8").model.state_dict()
        experts = "model.layers.0.block_sparse_moe.experts"
        for expert in range(4):
            parts = [
                dequantize_blocks(
                    *quantize_blocks(checkpoint.read(f"{experts}.{expert}.{w}.weight").astype(np.float32))
                )
                for w in ("w1", "w3")
            ]
            got = state["model.layers.0.mlp.experts.gate_up_proj"][expert].numpy()
            np.testing.assert_array_equal(got, np.concatenate(parts))
        for name in ("model.embed_tokens.weight", "model.layers.0.mlp.gate.weight"):  # never quantised
            key = name.replace("mlp.gate", "block_sparse_moe.gate")
            np.testing.assert_array_equal(state[name].numpy(), checkpoint.read(key).astype(np.float32))


def test_quantising_tells_its_error(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """The bound of e4m3 itself: 3 bits of mantissa err by at most 1/16 of a weight, or, below the smallest normal
    code, by 2^-10 in parts of the block's scale."""
    checkpoint = random_checkpoint(**SHAPE, quant="bf16", seed=41)
    request = BuildRequest(
        source=str(checkpoint), output=tmp_path / "fp8", context=128, cache=False, fp8=True
    )
    report = build_bundle(request, Quiet())
    assert "relative RMS error" in report.quantization
    content = json.loads((tmp_path / "fp8" / "report" / "quantization.json").read_text())
    assert [layer["layer"] for layer in content["layers"]] == [0, 1]
    kinds = {"q_proj", "k_proj", "v_proj", "o_proj", "gate", "up", "down"}
    for layer in content["layers"]:
        assert set(layer) == kinds | {"layer"}
        for kind in kinds:
            found = layer[kind]
            assert found["tensors"] == (4 if kind in ("gate", "up", "down") else 1)
            assert 0.01 < found["relative_rms"] < 1 / 16  # normal weights: about 2.6 %
            assert found["sqnr_db"] == pytest.approx(-20 * np.log10(found["relative_rms"]))
            assert 0 < found["largest_error"] <= 1 / 28 + 1e-6  # half a step of the top codes: 16 of 448
            assert f"layers.{layer['layer']}." in found["worst"]
    assert content["total"]["tensors"] == 2 * (4 + 3 * 4)


def test_an_fp8_checkpoint_is_kept_under_fp8(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = random_checkpoint(**SHAPE, quant="fp8", seed=41)
    as_is, fp8 = built(checkpoint, tmp_path / "stored"), built(checkpoint, tmp_path / "fp8", fp8=True)
    weights = "rank0/weights.safetensors"
    assert (as_is / weights).read_bytes() == (fp8 / weights).read_bytes()
    assert not (fp8 / "report" / "quantization.json").exists()
