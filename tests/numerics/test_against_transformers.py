"""Random checkpoints of many shapes, built and compared with the unmodified transformers module in fp32.

Tolerance and greedy agreement are those of `mm2c verify`; both lowerings; single rank and sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from remembering import RememberingReference

from mm2c.checkpoint import Checkpoint
from mm2c.errors import UserError
from mm2c.pipeline import BuildRequest, build_bundle
from mm2c.progress import Quiet
from mm2c.verify.logits import CaseResult, case_result, verify_bundle
from mm2c.verify.reference import Reference
from mm2c.verify.run import verify_checkpoint
from mm2c_runtime.manifest_file import read_bundle


@dataclass(frozen=True)
class Case:
    name: str
    shape: dict[str, Any]
    layouts: tuple[tuple[int, int], ...]  # (tp, ep)


# odd sizes wherever they are legal: vocabularies and widths that no scale block and no rank count divides
CASES = (
    Case(
        "released-like",
        dict(layers=3, intermediate=512, experts=8, top_k=2, seed=1),
        ((1, 1), (2, 1), (4, 1), (4, 4)),
    ),
    Case(
        "gqa-narrow-head",
        dict(layers=2, hidden=192, heads=12, kv_heads=4, head_dim=32, rotary_dim=16, intermediate=96,
             experts=8, top_k=3, vocab=517, quant="bf16", seed=2),
        ((1, 1), (2, 2), (4, 2)),
    ),
    Case(
        "one-kv-head",
        dict(layers=2, hidden=320, heads=6, kv_heads=1, head_dim=64, rotary_dim=64, intermediate=256,
             experts=5, top_k=5, vocab=301, seed=3),
        ((1, 1),),
    ),
    Case(
        "mixed-quarter-rotary",
        dict(layers=2, hidden=256, heads=4, kv_heads=2, head_dim=96, rotary_dim=24, intermediate=256,
             experts=16, top_k=4, vocab=640, quant="mixed", seed=4),
        ((1, 1), (2, 1), (2, 2)),
    ),
    Case(
        "many-experts",
        dict(layers=1, hidden=128, heads=8, kv_heads=8, head_dim=64, rotary_dim=32, intermediate=128,
             experts=64, top_k=8, vocab=1024, rope_theta=5e6, gate_dtype="f32", seed=5),
        ((1, 1), (4, 4)),
    ),
    Case(  # gate and up end inside a scale block
        "experts-of-cut-blocks",
        dict(layers=2, hidden=100, heads=5, kv_heads=5, head_dim=48, rotary_dim=12, intermediate=200,
             experts=6, top_k=3, vocab=600, seed=7),
        ((1, 1),),
    ),
    Case(
        "yarn",
        dict(layers=2, hidden=128, heads=4, kv_heads=4, head_dim=64, rotary_dim=32, intermediate=256,
             experts=4, top_k=1, vocab=512, context=1024, seed=6,
             rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}),
        ((1, 1), (2, 1)),
    ),
)  # fmt: skip
RUNS = [(case, tp, ep) for case in CASES for tp, ep in case.layouts]


def build_and_compare(
    checkpoint: Path, bundle: Path, references: dict[Path, RememberingReference], **options: Any
) -> list[CaseResult]:
    build_bundle(BuildRequest(source=str(checkpoint), output=bundle, cache=False, **options), Quiet())
    if checkpoint not in references:
        references[checkpoint] = RememberingReference(Checkpoint.open(checkpoint))
    manifest = read_bundle(bundle)
    return verify_bundle(
        bundle, manifest, references[checkpoint], ["fast", "portable"], steps=32, rows=5, progress=Quiet()
    )


@pytest.mark.parametrize(("case", "tp", "ep"), RUNS, ids=[f"{c.name}-tp{tp}-ep{ep}" for c, tp, ep in RUNS])
def test_logits_equal_transformers(
    case: Case,
    tp: int,
    ep: int,
    random_checkpoint: Callable[..., Path],
    references: dict[Path, RememberingReference],
    tmp_path: Path,
) -> None:
    checkpoint = random_checkpoint(**case.shape)
    results = build_and_compare(checkpoint, tmp_path / "bundle", references, tp=tp, ep=ep, context=256)
    assert len(results) == 6
    assert all(r.passed for r in results), [r.as_json() for r in results]


@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (4, 4)])
def test_the_demo_checkpoint_equals_transformers(
    tiny_m2: Path, tmp_path: Path, references: dict[Path, RememberingReference], tp: int, ep: int
) -> None:
    results = build_and_compare(tiny_m2, tmp_path / "bundle", references, tp=tp, ep=ep, fp8=True)
    assert all(r.passed for r in results), [r.as_json() for r in results]


@pytest.mark.parametrize(
    "shape",
    [dict(layers=2, quant="bf16", seed=31), dict(layers=2, quant="bf16", tie_word_embeddings=True, seed=32)],
)
def test_the_reference_is_what_transformers_loads_itself(
    random_checkpoint: Callable[..., Path], shape: dict[str, Any]
) -> None:
    """Our own recipes fill the reference: a wrong place would cancel out on both sides, but not here."""
    import torch
    from transformers import MiniMaxM2ForCausalLM

    folder = random_checkpoint(**shape)
    ours = Reference(Checkpoint.open(folder)).model.state_dict()
    theirs = MiniMaxM2ForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name


@pytest.mark.parametrize("intermediate", [256, 200])
def test_the_references_fp8_weights_are_blocks_times_scales(
    random_checkpoint: Callable[..., Path], intermediate: int
) -> None:
    """The same for FP8, with a dequantisation written out here."""
    import numpy as np

    folder = random_checkpoint(layers=1, intermediate=intermediate, experts=4, seed=33)
    checkpoint = Checkpoint.open(folder)

    def dense(name: str) -> Any:
        weight = checkpoint.read(f"{name}.weight").astype(np.float32)
        scale = checkpoint.read(f"{name}.weight_scale_inv")
        n, k = weight.shape
        return weight * scale[np.arange(n) // 128][:, np.arange(k) // 128]

    ours = Reference(checkpoint).model.state_dict()
    experts = "model.layers.0.block_sparse_moe.experts"
    for expert in range(4):
        gate_up = np.concatenate([dense(f"{experts}.{expert}.w1"), dense(f"{experts}.{expert}.w3")])
        got = ours["model.layers.0.mlp.experts.gate_up_proj"][expert].numpy()
        np.testing.assert_array_equal(got, gate_up)
        down = ours["model.layers.0.mlp.experts.down_proj"][expert].numpy()
        np.testing.assert_array_equal(down, dense(f"{experts}.{expert}.w2"))
    q = "model.layers.0.self_attn.q_proj"
    np.testing.assert_array_equal(ours[f"{q}.weight"].numpy(), dense(q))


def test_nan_logits_never_pass() -> None:
    import numpy as np

    want = [np.arange(3, dtype=np.float32)] * 2
    got = [want[0], np.asarray([0, 1, np.nan], np.float32)]
    assert not case_result("fast", "prefill", got, want).passed
    assert not case_result("fast", "prefill", got[::-1], want).passed


def test_the_comparison_can_fail(
    random_checkpoint: Callable[..., Path], references: dict[Path, RememberingReference], tmp_path: Path
) -> None:
    """A bundle of other weights is found out: the tolerance is no formality."""
    one, other = (random_checkpoint(layers=1, seed=seed) for seed in (21, 22))
    build_and_compare(one, tmp_path / "one", references, context=128)
    build_bundle(
        BuildRequest(source=str(other), output=tmp_path / "other", context=128, cache=False), Quiet()
    )
    wrong = tmp_path / "other"
    results = verify_bundle(
        wrong, read_bundle(wrong), references[one], ["fast"], steps=2, rows=2, progress=Quiet()
    )
    assert not any(r.passed for r in results)


def test_verify_refuses_another_checkpoint(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    one, other = random_checkpoint(layers=1, seed=21), random_checkpoint(layers=2, seed=21)
    build_bundle(BuildRequest(source=str(one), output=tmp_path / "one", context=128, cache=False), Quiet())
    with pytest.raises(UserError, match="another checkpoint"):
        verify_checkpoint(tmp_path / "one", str(other), "all", steps=2, rows=2, progress=Quiet())
