"""Which layout is planned for which GPUs, what it holds, and what is said where none does."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mm2c.checkpoint.convert import converted_formats
from mm2c.collectives import cheaper_head, plan_collectives
from mm2c.config import PAGE, Mapping, ModelConfig, Rope, WeightFormats
from mm2c.errors import UserError
from mm2c.passes.legality import mapping_fault
from mm2c.plan.advice import remedies, shortage
from mm2c.plan.ask import Ask
from mm2c.plan.choice import make_plan
from mm2c.plan.fit import fit
from mm2c.plan.gpus import GPUS, find_gpu, gpu_of_size
from mm2c.plan.layouts import fault_of, flags, layouts, name, words
from mm2c.plan.speed import decode_step, experts_used

M27 = ModelConfig(
    layers=62, hidden=3072, heads=48, kv_heads=8, head_dim=128, intermediate=1536, experts=256, top_k=8,
    vocab=200064, eps=1e-6, context=204800, rope=Rope(5e6, 64), bos=None, eos=(),
)  # fmt: skip
FP8 = converted_formats(M27, WeightFormats(), "fp8")
ASK = Ask(M27, FP8, M27.context)
H200 = find_gpu("h200")


def test_every_layout_of_eight_gpus() -> None:
    found = list(layouts(8))
    assert len(found) == len(set(found)) == 16
    assert all(mapping.gpus == 8 and mapping.ranks * mapping.replicas == 8 for mapping in found)
    assert {Mapping(8), Mapping(8, 8), Mapping(1, 8, 8), Mapping(4, 8, 2), Mapping(4, 1, 2)} < set(found)
    assert list(layouts(8, tp=8, ep=2)) == [Mapping(8, 2)]
    assert list(layouts(8, tp=3)) == []


@given(st.integers(1, 32))
def test_layouts_are_those_that_legality_knows(gpus: int) -> None:
    every = {
        Mapping(tp, ep, gpus // tp)
        for tp, ep in itertools.product(range(1, gpus + 1), repeat=2)
        if gpus % tp == 0
    }
    legal = {mapping for mapping in every if mapping_fault(M27, mapping) is None}
    assert {m for m in layouts(gpus) if mapping_fault(M27, m) is None} == legal


def test_layouts_have_names() -> None:
    assert (name(Mapping(4, 4, 2)), flags(Mapping(4, 4, 2))) == ("tp 4, ep 4, dp 2", "--tp 4 --ep 4 --dp 2")
    assert name(Mapping()) == "tp 1"
    assert "whole attention weights" in words(Mapping(1, 8, 8))
    assert words(Mapping(2, 4, 4)).startswith("2 replicas of: attention-DP: 2 groups")


@pytest.mark.parametrize("mapping", [m for m in layouts(8) if m != Mapping(1, 1, 8)])
def test_a_plan_fills_the_gpu_to_the_byte(mapping: Mapping) -> None:
    own = fit(ASK, H200, mapping)
    assert len(own.rooms) == mapping.ranks
    for room in own.rooms:
        rank = room.rank
        parts = rank.weights.total + rank.activations + rank.workspace + rank.buffers
        assert parts + room.reserve + room.system + room.collectives + room.free == H200.memory
        used = (room.tokens + room.kept * PAGE) * rank.kv_per_token
        assert 0 <= room.free - used < PAGE * rank.kv_per_token
    assert own.kv_capacity_tokens == mapping.dp * own.group_tokens
    assert own.replica_tokens * mapping.replicas == own.kv_capacity_tokens


def test_attention_dp_holds_whole_attention_and_a_share_of_the_experts() -> None:
    whole = fit(ASK, H200, Mapping()).memory.ranks[0].weights
    own = fit(ASK, H200, Mapping(1, 8, 8)).memory
    assert len(own.ranks) == 8
    assert own.replicas == 1
    assert own.ranks[5].weights.attention == whole.attention
    assert own.ranks[5].weights.embedding == whole.embedding
    assert 8 * own.ranks[5].weights.experts == whole.experts
    assert own.kv_per_token == own.ranks[0].kv_per_token == 253_952  # of one group: a rank
    wide = fit(ASK, H200, Mapping(2, 8, 4)).memory
    assert (wide.kv_per_token, wide.ranks[0].kv_per_token) == (253_952, 126_976)


def test_kv_heads_are_held_twice_by_sixteen_ranks() -> None:
    own = fit(ASK, H200, Mapping(16, 2))
    assert own.memory.kv_per_token == 2 * 253_952
    assert own.memory.ranks[0].kv_per_token == 253_952 // 8


def test_pure_tp8_is_planned_with_reblocked_scales() -> None:
    plan = make_plan(ASK, H200, tp=8)
    assert plan.given
    assert plan.fits
    cut, spread = (fit(ASK, H200, m).memory.ranks[0].weights.experts for m in (Mapping(8), Mapping(8, 8)))
    assert cut - spread == 62 * 256 // 8 * 3 * 12 * 24 * 4  # scales of 64 rows where others have 128


def test_eight_h200_get_pure_tp8_with_reasons() -> None:
    plan = make_plan(ASK, H200, gpus=8)
    assert plan.best.mapping == Mapping(8)
    assert len(plan.considered) == 16
    chosen, *others = plan.considered
    assert chosen.verdict == "chosen"
    assert "188 messages" in chosen.why
    assert {one.verdict for one in others} == {"fits", "no room"}
    assert all(one.step and chosen.step and one.step.seconds >= 0 for one in others)
    whole = next(one for one in others if one.mapping == Mapping(1, 1, 8))
    assert whole.why.startswith("weights alone: ")


def test_the_fewest_gpus_are_taken_where_no_number_was_given() -> None:
    assert [make_plan(ASK, find_gpu(card)).best.mapping.gpus for card in ("h200", "h100", "rtx-5090")] == [
        2,
        4,
        16,
    ]
    assert make_plan(ASK, find_gpu("h100"), ep=8).best.mapping.gpus == 8


def test_a_batch_that_fits_decides_by_the_step_alone() -> None:
    roomy = make_plan(ASK, find_gpu("mi355x"), gpus=4)
    small = make_plan(Ask(M27, FP8, 8192, batch=8), find_gpu("mi355x"), gpus=4)
    assert roomy.best.mapping == Mapping(4)
    assert small.step.seconds <= roomy.step.seconds
    assert small.best.mapping == Mapping(1, 1, 4)


def test_messages_and_bytes_are_the_collective_plan_s() -> None:
    own = fit(Ask(M27, FP8, 8192, batch=16), H200, Mapping(2, 8, 4))
    step = decode_step(own)
    head = cheaper_head(M27, own.mapping)
    messages = plan_collectives(M27, own.mapping, tokens=4, rows=4, itemsize=2, head=head)
    assert (step.rows, step.messages, step.sent) == (4, len(messages), sum(m.sent for m in messages))
    assert step.message_seconds == pytest.approx(len(messages) * 8e-6 + step.sent / 450e9)
    assert decode_step(fit(ASK, find_gpu("mi355x"), Mapping())).messages == 0


@given(st.integers(1, 4096), st.sampled_from([1, 2, 4, 8, 256]))
def test_no_more_experts_are_used_than_there_are(count: int, ep: int) -> None:
    used = experts_used(M27, count, ep)
    assert 0 < used <= min(256 // ep, count * 8)
    assert experts_used(M27, count + 1, ep) >= used - 1e-9 or count * 8 >= 256 // ep


def test_a_layout_that_cannot_work_is_answered_with_those_that_can() -> None:
    with pytest.raises(UserError, match="KV heads") as refused:
        make_plan(ASK, H200, tp=6)
    assert refused.value.remedy.startswith("the nearest layouts that can: --tp 8 (8 GPUs, ")
    with pytest.raises(UserError, match="256 experts") as refused:
        make_plan(ASK, H200, tp=8, ep=3)
    assert "--tp 8 --ep 4" in refused.value.remedy
    with pytest.raises(UserError, match="multiples of 64") as refused:
        make_plan(ASK, H200, tp=16)
    assert "--tp 16 --ep 2" in refused.value.remedy
    with pytest.raises(UserError, match="--gpus says 4"):
        make_plan(ASK, H200, gpus=4, tp=8)
    with pytest.raises(UserError, match="no layout of --gpus 8 --ep 3 can work"):
        make_plan(ASK, H200, gpus=8, ep=3)


def near(card: str, tp: int, ep: int, dp: int) -> list[tuple[Mapping, str]]:
    """What a refusal names: layouts, and what it says of each."""
    with pytest.raises(UserError) as refused:
        make_plan(ASK, find_gpu(card), tp=tp, ep=ep, dp=dp)
    found = re.findall(r"--tp (\d+)(?: --ep (\d+))?(?: --dp (\d+))? \((.+?)\)", refused.value.remedy)
    return [(Mapping(int(tp), int(ep or 1), int(dp or 1)), said) for tp, ep, dp, said in found]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.sampled_from(["h200", "h100"]))
def test_what_is_near_can_work_and_what_fits_comes_first(tp: int, ep: int, dp: int, card: str) -> None:
    assume(fault_of(M27, Mapping(tp, ep, dp)) is not None)
    found = near(card, tp, ep, dp)
    assert 0 < len(found) <= 5
    assert all(fault_of(M27, mapping) is None for mapping, _ in found)
    for mapping, said in found:
        own = fit(ASK, find_gpu(card), mapping)
        assert said.startswith(f"{mapping.gpus} GPU")
        assert ("too much" in said) == (not own.fits)
    lacking = ["too much" in said for _, said in found]
    assert lacking == sorted(lacking)
    assert not lacking[0]


def test_where_nothing_near_fits_the_fewest_that_suffice_are_named() -> None:
    with pytest.raises(UserError) as refused:
        make_plan(ASK, find_gpu("rtx-5090"), tp=3)
    assert refused.value.remedy.startswith("it fits on --tp 16 --ep 2 (16 GPUs, ")
    assert "too small: --tp 4 (4 GPUs, 36.4 GiB a GPU too much)" in refused.value.remedy
    with pytest.raises(UserError) as refused:
        make_plan(ASK, gpu_of_size(2 << 30, "2GiB"), tp=5)
    assert refused.value.remedy.startswith("the nearest layouts that can: --tp 4 (4 GPUs, ")
    assert refused.value.remedy.count("too much") == 4


def test_a_model_that_the_kernels_do_not_compute_has_no_near_layout() -> None:
    ask = Ask(replace(M27, head_dim=64), WeightFormats(), 4096)
    for sizes in ({"tp": 2}, {"gpus": 4}, {}):
        with pytest.raises(UserError, match="head_dim 64") as refused:
            make_plan(ask, H200, **sizes)
        assert refused.value.remedy.startswith("--engine onnxruntime")


def test_what_does_not_fit_says_by_how_much_and_every_remedy_helps() -> None:
    ask = Ask(M27, FP8, 131072, batch=16)
    plan = make_plan(ask, find_gpu("rtx-pro-6000"), tp=4)
    assert not plan.fits
    lacking = plan.best.required * plan.best.tightest.rank.kv_per_token - plan.best.tightest.free
    assert plan.best.short == lacking > 0
    assert f"{lacking / 2**30:,.1f} GiB short" in shortage(plan)
    smaller, *others = remedies(plan)
    batch, context = (int(word.split()[1]) for word in smaller.split(" or "))
    assert make_plan(Ask(M27, FP8, 131072, batch=batch), plan.gpu, tp=4).fits
    assert not make_plan(Ask(M27, FP8, 131072, batch=batch + 1), plan.gpu, tp=4).fits
    assert make_plan(Ask(M27, FP8, context, batch=16), plan.gpu, tp=4).fits
    assert any(text.startswith("8 GPUs (") for text in others)
    assert any(text == "4 × GB200" for text in others)
    assert not any("--kv-dtype" in text for text in others)  # it would not suffice
    half = make_plan(Ask(M27, FP8, 131072, batch=9), plan.gpu, tp=4)
    assert "--kv-dtype fp8" in remedies(half)
    assert remedies(make_plan(ASK, H200, tp=8)) == []


def test_weights_that_do_not_fit_leave_no_context_to_suggest() -> None:
    plan = make_plan(ASK, find_gpu("h100"), tp=2)
    assert "weights of 107.2 GiB" in shortage(plan)
    assert not any("--context" in text or "--batch" in text for text in remedies(plan))
    dense = make_plan(Ask(M27, WeightFormats(), 65536), find_gpu("h100"), tp=4)
    assert "--fp8 weights" in remedies(dense)


def test_where_none_fits_the_closest_is_called_so() -> None:
    plan = make_plan(ASK, find_gpu("h100"), gpus=2)
    assert (plan.best.mapping, plan.considered[0].verdict) == (Mapping(2), "closest")
    assert plan.why.startswith("none of the 4 that can work fits; this is the closest, 55.2 GiB a GPU short")
    alone = next(one for one in plan.considered if one.mapping == Mapping(1, 1, 2))
    assert alone.fit is not None
    assert alone.why == f"weights alone: {-alone.fit.tightest.free / 2**30:,.1f} GiB a GPU too much"
    five = make_plan(ASK, find_gpu("h100"), gpus=5)
    assert five.why.startswith("does not fit, ")
    assert "4 GPUs (--tp 4)" in remedies(five)


def test_larger_gpus_are_of_the_same_maker() -> None:
    plan = make_plan(ASK, find_gpu("mi300x"), tp=1)
    assert not any("H200" in text or "B300" in text for text in remedies(plan))
    other = make_plan(ASK, gpu_of_size(40 << 30, "40GiB"), gpus=4)
    assert any(text.startswith("4 × ") for text in remedies(other))


def test_every_gpu_can_be_planned_for() -> None:
    for gpu in GPUS:
        plan = make_plan(ASK, gpu)
        assert plan.best.tightest.memory == gpu.memory
        assert plan.fits or plan.best.short > 0
