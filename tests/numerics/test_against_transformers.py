"""Random checkpoints of many shapes, built and compared with the unmodified transformers module in fp32.

Tolerance and greedy agreement are those of `mm2c verify`; both lowerings; single rank and sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mm2c.pipeline import BuildRequest, build_bundle
from mm2c.progress import Quiet
from mm2c.verify.run import verify_checkpoint


@dataclass(frozen=True)
class Case:
    name: str
    shape: dict[str, Any]
    layouts: tuple[tuple[int, int], ...]  # (tp, ep)


# odd lengths: vocabularies, contexts and widths that no block, chunk or rank count divides, where that is legal
CASES = (
    Case("released-like", dict(layers=3, intermediate=512, experts=8, top_k=2, seed=1), ((1, 1), (2, 1), (4, 1), (4, 4))),
    Case(
        "gqa-narrow-head",
        dict(layers=2, hidden=192, heads=12, kv_heads=4, head_dim=32, rotary_dim=16, intermediate=96, experts=8,
             top_k=3, vocab=517, quant="bf16", seed=2),
        ((1, 1), (2, 2), (4, 2)),
    ),
    Case(
        "one-kv-head",
        dict(layers=2, hidden=320, heads=6, kv_heads=1, head_dim=64, rotary_dim=64, intermediate=256, experts=5,
             top_k=5, vocab=301, seed=3),
        ((1, 1),),
    ),
    Case(
        "mixed-quarter-rotary",
        dict(layers=2, hidden=256, heads=4, kv_heads=2, head_dim=96, rotary_dim=24, intermediate=256, experts=16,
             top_k=4, vocab=640, quant="mixed", seed=4),
        ((1, 1), (2, 1), (2, 2)),
    ),
    Case(
        "many-experts",
        dict(layers=1, hidden=128, heads=8, kv_heads=8, head_dim=64, rotary_dim=32, intermediate=128, experts=64,
             top_k=8, vocab=1024, rope_theta=5e6, gate_dtype="f32", seed=5),
        ((1, 1), (4, 4)),
    ),
    Case(
        "yarn",
        dict(layers=2, hidden=128, heads=4, kv_heads=4, head_dim=64, rotary_dim=32, intermediate=256, experts=4,
             top_k=1, vocab=512, context=1024, seed=6,
             rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}),
        ((1, 1), (2, 1)),
    ),
)  # fmt: skip
RUNS = [(case, tp, ep) for case in CASES for tp, ep in case.layouts]


@pytest.mark.parametrize(("case", "tp", "ep"), RUNS, ids=[f"{c.name}-tp{tp}-ep{ep}" for c, tp, ep in RUNS])
def test_logits_equal_transformers(
    case: Case, tp: int, ep: int, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(**case.shape)
    request = BuildRequest(source=str(checkpoint), output=tmp_path / "bundle", tp=tp, ep=ep, context=256, cache=False)
    build_bundle(request, Quiet())
    outcome = verify_checkpoint(tmp_path / "bundle", None, "all", steps=32, rows=5, progress=Quiet())
    assert len(outcome.results) == 6
    assert outcome.passed, [r.as_json() for r in outcome.results if not r.passed]


@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (4, 4)])
def test_the_demo_checkpoint_equals_transformers(tiny_m2: Path, tmp_path: Path, tp: int, ep: int) -> None:
    request = BuildRequest(source=str(tiny_m2), output=tmp_path / "bundle", tp=tp, ep=ep, fp8=True, cache=False)
    build_bundle(request, Quiet())
    outcome = verify_checkpoint(tmp_path / "bundle", None, "all", steps=32, rows=6, progress=Quiet())
    assert outcome.passed, [r.as_json() for r in outcome.results if not r.passed]
