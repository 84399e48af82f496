"""The memory plan against the published sizes, and against the recipes to the byte."""

from __future__ import annotations

import pytest

from mm2c.checkpoint import recipes_for_config
from mm2c.config import BuildOptions, Mapping, ModelConfig, Rope, WeightFormats
from mm2c.errors import UserError
from mm2c.host_memory import check_host_memory, host_memory, host_needs
from mm2c.memory import plan_memory
from mm2c_runtime.weights.evaluate import nbytes

M27 = ModelConfig(
    layers=62, hidden=3072, heads=48, kv_heads=8, head_dim=128, intermediate=1536, experts=256, top_k=8,
    vocab=200064, eps=1e-6, context=204800, rope=Rope(5e6, 64), bos=None, eos=(),
)  # fmt: skip
MODULES = [f"self_attn.{p}_proj" for p in "qkvo"] + ["mlp.experts"]
FP8 = WeightFormats(frozenset(f"model.layers.{layer}.{m}" for layer in range(62) for m in MODULES))
SMALL = ModelConfig(
    layers=2, hidden=128, heads=8, kv_heads=4, head_dim=128, intermediate=512, experts=8, top_k=2,
    vocab=1024, eps=1e-6, context=512, rope=Rope(1e4, 64), bos=None, eos=(),
)  # fmt: skip


def test_m27_has_228_7_billion_parameters_and_915_gb_in_f32() -> None:
    weights = plan_memory(M27, FP8, Mapping(), weight_dtype="f32").ranks[0].weights
    parameters = (weights.total - weights.rope) / 4
    assert parameters == pytest.approx(228.7e9, rel=1e-4)
    assert weights.total - weights.rope == pytest.approx(915e9, rel=5e-4)


def test_m27_kv_cache_is_253952_bytes_a_token() -> None:
    assert plan_memory(M27, FP8, Mapping()).kv_per_token == 253_952
    assert plan_memory(M27, FP8, Mapping(tp=4)).ranks[0].kv_per_token == 253_952 // 4
    assert plan_memory(M27, FP8, Mapping(tp=4), kv_dtype="fp8").kv_per_token == 253_952 // 2
    assert plan_memory(M27, FP8, Mapping(tp=16)).kv_per_token == 2 * 253_952  # heads replicated


def test_m27_rank_of_four() -> None:
    weights = plan_memory(M27, FP8, Mapping(tp=4)).ranks[3].weights
    layers = weights.total - weights.embedding - weights.head - weights.rope
    assert layers == pytest.approx(56.9e9, rel=2e-3)
    assert weights.total == pytest.approx(57.6e9, rel=1e-3)


def test_m27_on_four_cards_of_96_gib_holds_the_guides_tokens() -> None:
    """The guide says about 400 thousand tokens; it leaves a tenth of each card to the server."""
    plan = plan_memory(M27, FP8, Mapping(tp=4), rows=64, context=4096)
    assert 400_000 < plan.kv_capacity_tokens(int(96 * 2**30 * 0.9)) < 600_000
    assert plan_memory(M27, FP8, Mapping(tp=4, dp=2)).kv_capacity_tokens(96 << 30) == pytest.approx(
        2 * plan_memory(M27, FP8, Mapping(tp=4)).kv_capacity_tokens(96 << 30)
    )


@pytest.mark.parametrize("config", [M27, SMALL])
@pytest.mark.parametrize(
    "formats", [FP8, WeightFormats(), WeightFormats(dtypes=(("lm_head.weight", "f32"),))]
)
def test_one_rank_is_the_recipes_to_the_byte(config: ModelConfig, formats: WeightFormats) -> None:
    recipes = recipes_for_config(config, formats, context=256)
    plan = plan_memory(config, formats, Mapping(), context=256)
    assert plan.ranks[0].weights.total == sum(map(nbytes, recipes.values()))


def test_converted_weights() -> None:
    stored = plan_memory(SMALL, WeightFormats(), Mapping()).ranks[0].weights
    assert plan_memory(SMALL, FP8, Mapping(), weight_dtype="bf16").ranks[0].weights == stored
    single = plan_memory(SMALL, FP8, Mapping(), weight_dtype="f32").ranks[0].weights
    assert single.total - single.rope == 2 * (stored.total - stored.rope)


@pytest.mark.parametrize(("tp", "ep"), [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_cut_parts_add_up(tp: int, ep: int) -> None:
    whole = plan_memory(SMALL, FP8, Mapping()).ranks[0].weights
    plan = plan_memory(SMALL, FP8, Mapping(tp=tp, ep=ep))
    assert len(plan.ranks) == tp
    for part in ("embedding", "head", "attention", "experts"):
        assert sum(getattr(rank.weights, part) for rank in plan.ranks) == getattr(whole, part)
    assert plan.ranks[0].weights.router == whole.router  # replicated


def test_pure_tp8_counts_reblocked_scales() -> None:
    """192 = 3 * 64: scales of 64-wide blocks along the cut, twice as many as of 128."""
    cut = plan_memory(M27, FP8, Mapping(tp=8)).ranks[0].weights.experts
    whole = plan_memory(M27, FP8, Mapping()).ranks[0].weights.experts
    scales = 62 * 256 * 3 * 12 * 24 * 4
    assert 8 * cut == whole + scales


def test_totals_and_capacity() -> None:
    plan = plan_memory(SMALL, FP8, Mapping(tp=2, dp=2), rows=4, context=256)
    rank = plan.ranks[0]
    assert plan.tokens == 1024
    assert plan.per_rank == rank.weights.total + rank.activations + 1024 * rank.kv_per_token
    assert plan.total == 4 * plan.per_rank
    assert rank.kv_capacity(plan.per_rank) == 1024
    assert rank.kv_capacity(1000) == 0


def test_activations_grow_with_the_step() -> None:
    small, large = (plan_memory(M27, FP8, Mapping(tp=4), chunk=c).ranks[0].activations for c in (512, 4096))
    assert large > 4 * small
    scores = plan_memory(M27, FP8, Mapping(), context=8192, attention_scores=True).ranks[0].activations
    assert scores > 48 * 512 * 8192 * 4


def test_full_model_is_refused_on_a_cpu_with_the_figure() -> None:
    with pytest.raises(UserError) as caught:
        check_host_memory(M27, BuildOptions(Mapping(tp=4), context=8192), 256 * 10**9)
    assert "915 GB in fp32" in caught.value.what
    assert "256 GB" in caught.value.what


def test_cache_that_does_not_fit_says_what_would() -> None:
    options = BuildOptions(context=512, max_rows=8)
    need = check_host_memory(SMALL, options, 10**12)
    with pytest.raises(UserError) as caught:
        check_host_memory(SMALL, options, need["total_bytes"] - need["kv_bytes"] // 2)
    assert "--context 256 fits with 8 rows" in caught.value.remedy


def test_a_remedy_that_would_not_help_is_not_named() -> None:
    options = BuildOptions(context=512, max_rows=256)
    need = check_host_memory(SMALL, options, 10**12)
    least = need["weights_bytes"] + need["activations_bytes"]
    for available, cause in [
        (least + 10 * need["kv_bytes_per_token"], "KV cache"),  # of 256 rows
        (least, "KV cache"),
        (least - 1, "a step"),
        (need["weights_bytes"], "the model"),
    ]:
        with pytest.raises(UserError) as caught:
            check_host_memory(SMALL, options, available)
        assert cause in caught.value.what
        assert "--context 0" not in caught.value.remedy
        assert "fits" not in caught.value.remedy


def test_host_report() -> None:
    report = check_host_memory(SMALL, BuildOptions(context=512, max_rows=8))
    assert report["total_bytes"] == report["weights_bytes"] + report["kv_bytes"] + report["activations_bytes"]
    assert report["kv_bytes"] == 8 * 512 * report["kv_bytes_per_token"]
    assert "weights" in report["summary"]
    assert 0 < report["available_bytes"] == host_memory()


@pytest.mark.parametrize(
    "mapping", [Mapping(2), Mapping(4, 2), Mapping(1, 4, 4), Mapping(2, 4, 2), Mapping(2, 4, 4)]
)
def test_the_cpu_holds_all_ranks_of_a_replica(mapping: Mapping) -> None:
    options = BuildOptions(mapping, context=256, max_rows=3)
    plan = plan_memory(SMALL, WeightFormats(), mapping, context=256, weight_dtype="f32", kv_dtype="f32")
    needs = host_needs(SMALL, options)
    assert len(plan.ranks) == mapping.ranks
    assert needs.weights == sum(rank.weights.total for rank in plan.ranks)
    assert needs.tokens == mapping.attention_dp * 3 * 256
    assert needs.cache == 3 * 256 * sum(rank.kv_per_token for rank in plan.ranks)
    with pytest.raises(UserError) as caught:
        check_host_memory(SMALL, options, needs.total - needs.cache // 2)
    room = int(caught.value.remedy.split()[1])
    assert check_host_memory(SMALL, BuildOptions(mapping, context=room, max_rows=3), needs.total)


def test_groups_and_replicas_of_attention_dp() -> None:
    plan = plan_memory(SMALL, FP8, Mapping(2, 4, 4), rows=4, context=256)
    assert (len(plan.ranks), plan.replicas) == (4, 2)
    assert plan.kv_per_token == 2 * plan.ranks[0].kv_per_token  # a token lies on the two ranks of its group
    assert plan.total == 8 * plan.per_rank
    assert plan.kv_capacity_tokens(plan.per_rank) == 4 * plan.tokens
    whole = plan_memory(SMALL, FP8, Mapping()).ranks[0].weights
    assert sum(rank.weights.experts for rank in plan.ranks) == whole.experts
    assert sum(rank.weights.attention for rank in plan.ranks) == 2 * whole.attention
