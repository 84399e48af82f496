"""Illegal cuts are refused with the nearest layouts that can work."""

from __future__ import annotations

import re

import pytest
from hand_graph import fp8_everywhere, hand_graph, model_config

from mm2c.config import Mapping, ModelConfig, Rope
from mm2c.engine.cuda_limits import check_cuda
from mm2c.errors import UserError
from mm2c.passes.legality import check_mapping, layout, mapping_fault, nearest
from mm2c.passes.shard import shard

M2 = ModelConfig(
    layers=1, hidden=3072, heads=48, kv_heads=8, head_dim=128, intermediate=1536, experts=256, top_k=8,
    vocab=200064, eps=1e-6, context=204800, rope=Rope(5e6, 64), bos=1, eos=(2,),
)  # fmt: skip

LEGAL = [
    (1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 1, 1), (4, 2, 1), (4, 4, 1), (8, 1, 1), (8, 2, 1), (8, 8, 1), (4, 4, 2),
    (16, 1, 1), (24, 1, 1), (48, 2, 1), (1, 8, 8), (1, 8, 16), (2, 8, 4), (4, 8, 2), (8, 64, 8), (1, 1, 3),
]  # fmt: skip


@pytest.mark.parametrize("cut", LEGAL, ids=str)
def test_legal_cuts_of_the_released_model(cut: tuple[int, int, int]) -> None:
    mapping = Mapping(*cut)
    for rank in range(mapping.ranks):
        check_mapping(M2, mapping.at(rank))


@pytest.mark.parametrize(
    ("cut", "what", "where", "first"),
    [
        ((5, 1, 1), "tp 5 does not divide the model's 48 query heads", "--tp", "--tp 4 --ep 1"),
        ((3, 1, 1), "tp 3 neither divides the model's 8 KV heads nor is a multiple", "--tp", "--tp 4 --ep 1"),
        ((12, 1, 1), "tp 12 neither divides", "--tp", "--tp 16 --ep 1"),
        ((4, 3, 1), "ep 3 does not divide the model's 256 experts", "--ep", "--tp 4 --ep 4"),
        ((24, 16, 1), "ep 16 does not divide tp 24", "--tp, --ep", "--tp 24 --ep 8"),
        ((4, 8, 1), "ep 8 above tp 4 is attention-DP", "--tp, --ep, --dp", "--tp 4 --ep 4"),
        (
            (1, 8, 4),
            "multiple of tp that divides tp x dp, which is 4",
            "--tp, --ep, --dp",
            "--tp 1 --ep 4 --dp 4",
        ),
        ((1, 512, 512), "ep 512 does not divide the model's 256 experts", "--ep", "--tp 1 --ep 256 --dp 512"),
    ],
    ids=str,
)
def test_illegal_cuts_of_the_released_model(
    cut: tuple[int, int, int], what: str, where: str, first: str
) -> None:
    with pytest.raises(UserError) as refused:
        check_mapping(M2, Mapping(*cut))
    assert refused.value.what.startswith(f"{layout(Mapping(*cut))}: ")
    assert what in refused.value.what
    assert refused.value.where == where
    head, _, named = refused.value.remedy.partition(": ")
    assert head == "the nearest layouts that can"
    near = named.split(", or ")
    assert near[0] == first
    assert 1 < len(near) <= 4
    for text in near:
        values = dict(re.findall(r"--(tp|ep|dp) (\d+)", text))
        check_mapping(M2, Mapping(**{name: int(value) for name, value in values.items()}))


@pytest.mark.parametrize("cut", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-2, 1, 1)])
def test_less_than_one(cut: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        check_mapping(M2, Mapping(*cut))


def test_what_is_named_is_near_also_for_absurd_sizes() -> None:
    near = nearest(M2, Mapping(1_000_000))
    assert near[0] == Mapping(48)
    assert all(mapping_fault(M2, mapping) is None for mapping in near)


def test_what_is_named_is_what_is_taken_and_no_more_is_asked() -> None:
    asked: list[Mapping] = []

    def takes(mapping: Mapping) -> bool:
        asked.append(mapping)
        return mapping.ep == mapping.tp

    near = nearest(M2, Mapping(5), takes)
    assert near[:2] == [Mapping(4, 4), Mapping(2, 2)]
    assert asked[-1] == near[-1]
    assert len(asked) == len(set(asked))
    assert nearest(M2, Mapping(5), lambda mapping: False) == []


def test_the_cuda_engine_names_layouts_of_its_own() -> None:
    """16 ranks leave 96 of an expert's 1536, which divides a block of 64."""
    check_mapping(M2, Mapping(16))
    with pytest.raises(UserError, match="expert intermediate of 96") as refused:
        check_cuda(M2, Mapping(16))
    assert "layouts that the kernels compute: --tp 16 --ep 2" in refused.value.remedy
    check_cuda(M2, Mapping(16, 2))
    check_cuda(M2, Mapping(8))
    check_cuda(M2, Mapping(24))
    check_cuda(M2, Mapping(1, 8, 8))


def test_replicated_kv_heads_are_shared_by_fewer() -> None:
    config = model_config(heads=32, kv_heads=1, head_dim=128, rope=Rope(1e4, 64), intermediate=256)
    with pytest.raises(UserError, match="32 query heads on 1 KV heads"):
        check_cuda(config, Mapping())
    check_cuda(config, Mapping(2))


def test_a_width_that_ranks_do_not_divide() -> None:
    with pytest.raises(UserError, match="the 4 ranks that share an expert do not divide its width of 66"):
        check_mapping(model_config(intermediate=66), Mapping(4))


def test_every_rank_has_a_part_of_the_vocabulary() -> None:
    with pytest.raises(UserError, match="vocabulary of 9"):
        check_mapping(model_config(vocab=9, heads=8, kv_heads=8), Mapping(8))


def test_every_layout_that_is_named_legal_can_be_cut() -> None:
    config = model_config(heads=6, kv_heads=3, experts=6, intermediate=60, vocab=50, layers=1)
    graph = hand_graph(config, fp8_everywhere(config))
    seen = 0
    for tp in range(1, 13):
        for ep in range(1, 13):
            mapping = Mapping(tp, ep, dp=max(ep // tp, 1))
            if mapping_fault(config, mapping) is None:
                shard(graph, config, mapping.at(mapping.ranks - 1))
                seen += 1
            else:
                with pytest.raises(UserError):
                    shard(graph, config, mapping)
    assert seen == 11  # tp 1: 4, tp 3: 3, tp 6: 4
