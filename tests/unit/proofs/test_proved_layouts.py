"""What the compiler makes is proved: every layout, lowering and format, the released sizes among them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hand_graph import model_config
from hypothesis import given, settings
from hypothesis import strategies as st
from proof_cases import CONFIG, LAYOUTS, LOWER, case, make_case

from mm2c.config import Mapping
from mm2c.passes.legality import mapping_fault
from mm2c.proofs.report import PROOFS, write_proofs

EXPERT = "w1.weight"


@pytest.mark.parametrize("lowering", LOWER)
@pytest.mark.parametrize("mapping", LAYOUTS, ids=lambda m: f"tp{m.tp}-ep{m.ep}-dp{m.dp}")
def test_every_layout(mapping: Mapping, lowering: str) -> None:
    proof = case(mapping, lowering).prove()
    assert proof.ranks == mapping.ranks
    assert proof.sources == 3 + CONFIG.layers * (6 + 2 * 4 + 2 * 3 * CONFIG.experts)
    q, k = proof.classes["self_attn.q_proj.weight"], proof.classes["self_attn.k_proj.weight"]
    assert q == (mapping.tp, mapping.attention_dp)
    assert k == (min(mapping.tp, CONFIG.kv_heads), mapping.ranks // min(mapping.tp, CONFIG.kv_heads))
    assert proof.classes["self_attn.k_norm.weight"] == k
    assert proof.classes["self_attn.v_proj.weight"] == k
    assert proof.classes["model.norm.weight"] == (1, mapping.ranks)
    assert proof.classes[EXPERT] == (mapping.ranks, 1)
    if lowering == "fast":
        assert proof.converted > 0
        return
    divided = CONFIG.intermediate // mapping.moe_tp % 128 != 0
    assert proof.blocks[EXPERT] == ((64, 128) if divided else (128, 128))
    assert proof.blocks["w2.weight"] == ((128, 64) if divided else (128, 128))


@pytest.mark.parametrize("lowering", LOWER)
@pytest.mark.parametrize(
    ("stored", "target"),
    [("bf16", "stored"), ("mixed", "stored"), ("bf16", "fp8"), ("mixed", "fp8"), ("fp8", "bf16")],
)
@pytest.mark.parametrize("mapping", [Mapping(4, 2), Mapping(8), Mapping(2, 4, 2)], ids=str)
def test_every_format(mapping: Mapping, lowering: str, stored: str, target: str) -> None:
    made = make_case(mapping, lowering, stored, target)
    proof = made.prove()
    assert proof.pieces == proof.moved + proof.converted
    if target == "fp8" and lowering in ("graph", "portable"):
        divided = CONFIG.intermediate // mapping.moe_tp % 128 != 0
        assert proof.blocks[EXPERT] == ((64, 128) if divided else (128, 128))


WIDEST = [Mapping(tp, ep, dp) for tp in (1, 2, 3, 4, 6, 8) for ep in (1, 2, 4, 6, 8) for dp in (1, 2, 4)]


@settings(max_examples=25, deadline=None)
@given(
    group=st.sampled_from([1, 2, 3, 4]),
    kv_heads=st.sampled_from([1, 2, 3, 4]),
    head_dim=st.sampled_from([32, 64, 128]),
    intermediate=st.sampled_from([64, 96, 192, 256, 384, 640]),
    hidden=st.sampled_from([64, 128, 192]),
    experts=st.sampled_from([2, 6, 8]),
    vocab=st.integers(40, 130),
    stored=st.sampled_from(["fp8", "bf16", "mixed"]),
    lowering=st.sampled_from(["graph", "fast"]),
    data=st.data(),
)
def test_random_layouts(
    group: int, kv_heads: int, head_dim: int, intermediate: int, hidden: int, experts: int, vocab: int, stored: str,
    lowering: str, data: st.DataObject,
) -> None:  # fmt: skip
    config = model_config(
        layers=1, hidden=hidden, heads=group * kv_heads, kv_heads=kv_heads, head_dim=head_dim,
        intermediate=intermediate, experts=experts, vocab=vocab, top_k=1,
    )  # fmt: skip
    legal = [mapping for mapping in WIDEST if mapping_fault(config, mapping) is None]
    mapping = data.draw(st.sampled_from(legal))
    proof = make_case(mapping, lowering, stored, config=config).prove()
    assert proof.classes["self_attn.q_proj.weight"] == (mapping.tp, mapping.attention_dp)


def test_the_report_tells_of_every_kind_of_file(tmp_path: Path) -> None:
    made = case(Mapping(4), "portable"), case(Mapping(4), "fast")
    files = {
        f"rank{rank}/{name}": recipes
        for name, one in zip(("weights.safetensors", "weights.ort.safetensors"), made, strict=True)
        for rank, recipes in enumerate(one.ranks)
    }
    write_proofs(tmp_path, files, made[0].full, CONFIG, Mapping(4))
    report = json.loads((tmp_path / PROOFS).read_text(encoding="utf-8"))
    assert set(report) == {"weights.safetensors", "weights.ort.safetensors"}
    assert report["weights.safetensors"]["classes"][EXPERT] == {"parts": 4, "copies": 1}
    size = sum(one["bytes"] for one in report.values())
    assert size > 4 * 1536 * 128


def test_a_layer_of_the_released_size_takes_a_moment() -> None:
    """256 experts on eight ranks: 62 such layers are proved in seconds."""
    config = model_config(
        layers=2,
        hidden=3072,
        heads=48,
        kv_heads=8,
        head_dim=128,
        intermediate=1536,
        experts=256,
        top_k=8,
        vocab=200064,
    )
    made = make_case(Mapping(8), "graph", config=config)
    started = time.process_time()
    proof = made.prove()
    assert proof.moved > 2 * 8 * 256 * 6
    assert (
        time.process_time() - started < 2 * 20 / 62 * 3
    )  # seconds of the processor; three times what is wanted
