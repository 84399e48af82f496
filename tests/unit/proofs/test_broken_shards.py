"""Every way to lose, double or misplace entries is found, and told with the tensor's name and the rank."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from proof_cases import case

from mm2c.config import Mapping
from mm2c.proofs import ProofError
from mm2c_runtime.weights.recipe import (
    Cast,
    Computed,
    Concat,
    Dequantize,
    Interleave,
    Pad,
    Recipe,
    Slice,
    Source,
    Stack,
    Transpose,
)

L = "model.layers.1."
TP4, TP8, EP, DP = Mapping(4), Mapping(8), Mapping(4, 2), Mapping(2, 4, 2)
Change = Callable[[Any], Recipe]


def refused(
    mapping: Mapping, name: str, change: Change, *told: str, rank: int = 1, lowering: str = "graph"
) -> None:
    """With one tensor of one rank changed the proof fails, and says all of ``told``."""
    made = case(mapping, lowering)
    ranks = [dict(recipes) for recipes in made.ranks]
    ranks[rank][name] = change(ranks[rank][name])
    with pytest.raises(ProofError) as caught:
        made.prove(ranks)
    text = str(caught.value)
    for words in (name, *told):
        assert words in text, text
    assert re.search(rf"rank {rank}\b", text), text


def moved(by: int) -> Change:
    return lambda recipe: replace(recipe, start=recipe.start + by, stop=recipe.stop + by)


def joined(*rows: tuple[int, int]) -> Change:
    return lambda recipe: Concat(tuple(Slice(recipe.of, 0, *bounds) for bounds in rows), 0)


def test_a_k_norm_that_is_off_by_one() -> None:
    refused(TP4, f"{L}self_attn.k_norm.weight", moved(1), "[128, 256)", "[129, 257)")
    refused(TP4, f"{L}self_attn.k_norm.weight", moved(-128), "must hold [128, 256)", "[0, 128)")


@pytest.mark.parametrize(
    "name", ["q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "q_norm.weight"]
)
def test_attention_of_another_rank(name: str) -> None:
    refused(TP4, f"{L}self_attn.{name}", moved(128), name)


def test_a_head_that_is_held_by_too_few_ranks() -> None:
    """Two ranks hold each KV head; one of them takes its neighbour's."""
    refused(TP8, f"{L}self_attn.v_proj.weight", moved(128), "must hold [0, 128)")


def test_one_row_twice() -> None:
    name = f"{L}self_attn.o_proj.weight"
    refused(TP4, name, lambda r: Slice(r.of, 1, r.start, r.stop + 1), "[256, 513)")
    refused(TP4, f"{L}self_attn.q_norm.weight", lambda r: Concat((r, Slice(r.of, 0, 0, 1)), 0))
    refused(
        TP4,
        f"{L}self_attn.q_proj.weight",
        joined((256, 400), (399, 511)),
        "[399, 400) x [0, 128) is there twice",
    )


def test_one_row_missing() -> None:
    refused(TP4, f"{L}self_attn.q_proj.weight", joined((256, 400), (401, 513)), "is not within [256, 512)")
    refused(TP4, f"{L}self_attn.q_norm.weight", lambda r: Slice(r.of, 0, 256, 511), "[511, 512) is missing")


def test_rows_in_another_order() -> None:
    other = joined((384, 512), (256, 384))
    refused(TP4, f"{L}self_attn.q_proj.weight", other, "stands at place 0 and must at 128")
    refused(TP4, f"{L}self_attn.o_proj.weight", lambda r: Transpose(r, (1, 0)), "turned")


def test_another_layer() -> None:
    made = case(TP4)
    for name in ("input_layernorm.weight", "self_attn.q_proj.weight", "mlp.experts.down_proj"):
        other = made.ranks[1][f"model.layers.0.{name}"]
        refused(TP4, f"{L}{name}", lambda _, other=other: other, "which belongs elsewhere")  # type: ignore[misc]


def test_another_norm() -> None:
    other = case(TP4).ranks[1][f"{L}post_attention_layernorm.weight"]
    refused(TP4, f"{L}input_layernorm.weight", lambda _: other, "is made of", "post_attention_layernorm")


def test_a_tensor_that_nobody_holds() -> None:
    made = case(TP4)
    for name in (f"{L}mlp.gate.weight", "model.norm.weight", f"{L}self_attn.k_norm.weight", "rope.cos"):
        ranks = [{n: r for n, r in recipes.items() if n != name} for recipes in made.ranks]
        with pytest.raises(ProofError, match="in no tensor of the rank"):
            made.prove(ranks)


def experts(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Change:
    return lambda recipe: Stack(change(recipe.parts))


UP, DOWN = f"{L}mlp.experts.gate_up_proj", f"{L}mlp.experts.down_proj"


@pytest.mark.parametrize("name", [UP, DOWN, f"{UP}_scale_inv", f"{DOWN}_scale_inv"])
def test_experts_lost_doubled_or_exchanged(name: str) -> None:
    refused(EP, name, experts(lambda parts: parts[:-1]))
    refused(EP, name, experts(lambda parts: (*parts[:-1], parts[0])))
    refused(EP, name, experts(lambda parts: (parts[1], parts[0], *parts[2:])))
    other = case(EP).ranks[3][name]  # of the other group
    refused(EP, name, lambda _: other)


@pytest.mark.parametrize("lowering", ["graph", "cuda"])
def test_gate_and_up_exchanged(lowering: str) -> None:
    swapped = experts(lambda parts: tuple(Concat(part.parts[::-1], 0) for part in parts))
    refused(TP8, UP, swapped, "must at", lowering=lowering)
    refused(TP8, f"{UP}_scale_inv", swapped, "other half", lowering=lowering)
    one = experts(lambda parts: (*parts[:3], Concat(parts[3].parts[::-1], 0), *parts[4:]))
    refused(TP8, UP, one, lowering=lowering)


def test_gate_and_up_exchanged_where_they_alternate() -> None:
    def swapped(recipe: Any) -> Recipe:
        if isinstance(recipe, Interleave):
            half = recipe.shape[recipe.axis] // 2
            parts = (Slice(recipe.of, 1, half, 2 * half), Slice(recipe.of, 1, 0, half))
            return Interleave(Concat(parts, 1), 1)
        if isinstance(recipe, Concat):
            return replace(recipe, parts=tuple(swapped(part) for part in recipe.parts))
        return replace(recipe, of=swapped(recipe.of))

    refused(TP4, f"{UP}.moe", swapped, "must at", lowering="fast")


def test_a_scale_of_another_block() -> None:
    for name in ("q_proj", "k_proj"):
        refused(TP4, f"{L}self_attn.{name}.weight_scale_inv", moved(1))
    # half a block: rows 192 to 383 of an expert begin in the middle of the second block
    refused(TP8, f"{DOWN}_scale_inv", experts(lambda parts: tuple(_rolled(p, 1) for p in parts)))
    refused(TP8, f"{UP}_scale_inv", experts(lambda parts: tuple(_halves_rolled(p) for p in parts)))


def _rolled(part: Recipe, axis: int) -> Recipe:
    """The scales one place further on; the first comes last."""
    size = part.shape[axis]
    return Concat((Slice(part, axis, 1, size), Slice(part, axis, 0, 1)), axis)


def _halves_rolled(part: Any) -> Recipe:
    return Concat(tuple(_rolled(half, 0) for half in part.parts), 0)


def test_scales_divided_otherwise() -> None:
    """Rows of blocks of 64, yet each scale only once; and columns divided where the rows should be."""

    def once(part: Any) -> Recipe:
        return Concat(tuple(Slice(_source(half), 0, 1, 4) for half in part.parts), 0)

    refused(TP8, f"{UP}_scale_inv", experts(lambda parts: tuple(once(part) for part in parts)))


def _source(recipe: Any) -> Source:
    while not isinstance(recipe, Source):
        recipe = recipe.of
    return recipe


def test_scales_of_another_tensor_in_a_dequantised_one() -> None:
    name = f"{L}self_attn.o_proj.weight.t"
    found = case(TP4, "fast").ranks[1][name]

    def change(recipe: Any) -> Recipe:
        inner = recipe.of
        assert isinstance(recipe, Transpose)
        assert isinstance(inner, Dequantize)
        scale = inner.scale
        assert isinstance(scale, Slice)
        return Transpose(
            replace(inner, scale=replace(scale, start=scale.start - 1, stop=scale.stop - 1)), recipe.perm
        )

    assert found.dtype == "f32"
    refused(TP4, name, change, "block", lowering="fast")


def test_fused_projections_in_another_order() -> None:
    def change(recipe: Any) -> Recipe:
        q, k, v = recipe.parts
        return Concat((k, q, v), 0)

    refused(TP4, f"{L}self_attn.qkv_proj.weight", change, "q, k, v", lowering="cuda")
    refused(TP4, f"{L}self_attn.qkv_proj.weight_scale_inv", change, lowering="cuda")


def test_e4m3_without_its_scales() -> None:
    refused(TP4, f"{L}self_attn.o_proj.weight", lambda recipe: Cast(recipe, "f32"), "its scales are not used")
    made = case(TP4)
    name = f"{L}self_attn.o_proj.weight_scale_inv"
    ranks = [{n: r for n, r in recipes.items() if n != name} for recipes in made.ranks]
    with pytest.raises(ProofError, match=re.escape(f"the scales of {L}self_attn.o_proj.weight")):
        made.prove(ranks)


def test_vocabulary() -> None:
    refused(TP4, "lm_head.weight", moved(1), rank=0)
    refused(TP4, "model.embed_tokens.weight", lambda r: replace(r, to=r.to + 1), rank=3)
    refused(TP4, f"{L}self_attn.q_norm.weight", lambda r: Pad(Slice(r.of, 0, 256, 511), 0, 256), rank=1)


def test_rope_tables() -> None:
    def change(recipe: Any) -> Recipe:
        assert isinstance(recipe, Computed)
        return replace(recipe, args=tuple((k, v * 2 if k == "theta" else v) for k, v in recipe.args))

    refused(TP4, "rope.sin", change, "otherwise")
    refused(TP4, "rope.cos", lambda recipe: Slice(recipe, 0, 0, 10))


def test_one_tensor_in_two_places() -> None:
    made = case(TP4)
    ranks = [{**recipes, f"{L}again": recipes[f"{L}self_attn.k_norm.weight"]} for recipes in made.ranks]
    with pytest.raises(ProofError, match=re.escape(f"{L}again: {L}self_attn.k_norm.weight is in")):
        made.prove(ranks)


def test_ranks_exchanged() -> None:
    made = case(DP)
    with pytest.raises(ProofError, match="rank 0"):
        made.prove([made.ranks[1], made.ranks[0], *made.ranks[2:]])
    with pytest.raises(ProofError, match="3 ranks have weights, the layout has 4"):
        made.prove(made.ranks[:3])


def test_a_tensor_that_the_model_has_not() -> None:
    made = case(TP4)
    made = replace(made, full={**made.full, "x": Source("model.layers.0.mtp.weight", "bf16", (4,))})
    with pytest.raises(
        ProofError, match=re.escape("model.layers.0.mtp.weight: the model has no such tensor")
    ):
        made.prove()
