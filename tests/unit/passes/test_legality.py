"""Illegal cuts are refused with the legal values."""

from __future__ import annotations

import pytest
from hand_graph import fp8_everywhere, hand_graph, model_config

from mm2c.config import Mapping, ModelConfig, Rope, WeightFormats
from mm2c.errors import UserError
from mm2c.passes.legality import check_mapping, stored_formats

M2 = ModelConfig(
    layers=1, hidden=3072, heads=48, kv_heads=8, head_dim=128, intermediate=1536, experts=256, top_k=8,
    vocab=200064, eps=1e-6, context=204800, rope=Rope(5e6, 64), bos=1, eos=(2,),
)  # fmt: skip

LEGAL = "legal values of --tp: 1, 2, 4, 8 (8 only with --ep 2, 4 or 8)"


@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 2), (8, 8)])
def test_legal_cuts_of_the_released_model(tp: int, ep: int) -> None:
    for rank in range(tp):
        check_mapping(M2, fp8_everywhere(M2), Mapping(tp, ep, rank=rank))


@pytest.mark.parametrize(
    ("tp", "ep", "what", "remedy"),
    [
        (5, 1, "does not divide the model's 48 query heads", LEGAL),
        (3, 1, "does not divide the model's 8 KV heads", LEGAL),
        (8, 1, "slice 192 of the expert intermediate", "legal values of --ep with --tp 8: 2, 4, 8"),
        (4, 3, "--ep must divide --tp 4", "legal values of --ep with --tp 4: 1, 2, 4"),
        (0, 1, "at least 1", "--tp 1 --ep 1"),
    ],
)
def test_illegal_cuts_of_the_released_model(tp: int, ep: int, what: str, remedy: str) -> None:
    with pytest.raises(UserError) as refused:
        check_mapping(M2, fp8_everywhere(M2), Mapping(tp, ep))
    assert what in refused.value.what
    assert refused.value.remedy == remedy


def test_dense_weights_have_no_scale_blocks() -> None:
    check_mapping(M2, WeightFormats(), Mapping(8, 1))


def test_ep_divides_the_experts() -> None:
    config = model_config(experts=6)
    with pytest.raises(UserError, match="does not divide the model's 6 experts") as refused:
        check_mapping(config, WeightFormats(), Mapping(4, 4))
    assert refused.value.remedy == "legal values of --ep with --tp 4: 1, 2"


def test_attention_scale_blocks() -> None:
    config = model_config(heads=8, kv_heads=4, head_dim=32, intermediate=512)
    with pytest.raises(UserError, match="KV width 64 is not a multiple of the FP8 scale block") as refused:
        check_mapping(config, fp8_everywhere(config), Mapping(2))
    assert refused.value.remedy == "legal values of --tp: 1"


def test_every_rank_has_a_part_of_the_vocabulary() -> None:
    with pytest.raises(UserError, match="vocabulary of 9"):
        check_mapping(model_config(vocab=9, heads=8, kv_heads=8), WeightFormats(), Mapping(8))


def test_formats_are_read_from_the_graph() -> None:
    config = model_config(hidden=128, head_dim=128, intermediate=512)
    formats = fp8_everywhere(config)
    assert stored_formats(hand_graph(config, formats)).fp8 == formats.fp8
    assert not stored_formats(hand_graph(config)).fp8
