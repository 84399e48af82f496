"""What the cuda lowering makes of a graph: which ops, which tensors, and that nothing is cast at run time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import pytest
from hand_graph import fp8_everywhere, hand_graph, model_config

from mm2c.checkpoint.recipes import recipes_for_config
from mm2c.config import BuildOptions, Mapping, ModelConfig, WeightFormats
from mm2c.dialect import ops
from mm2c.lower.cuda import PLUGIN_OPS, STANDARD_OPS, lower_cuda
from mm2c.lower.program import LoweredRank
from mm2c.passes.edit import PassError, nodes_of
from mm2c.passes.shard import shard
from mm2c.trace import trace
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.recipe import Cast, Concat

CONFIG = model_config(hidden=128, head_dim=128, intermediate=512, vocab=97)
FP8 = fp8_everywhere(CONFIG)
MIXED = WeightFormats(frozenset(m for m in FP8.fp8 if m.endswith(".experts")))
BF16, F32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT


@pytest.fixture(scope="module")
def traced() -> Any:
    known: dict[Any, RankGraph] = {}

    def make(formats: WeightFormats, **options: Any) -> RankGraph:
        key = (formats, tuple(options.items()))
        if key not in known:
            recipes = recipes_for_config(CONFIG, formats)
            known[key] = trace(
                CONFIG, formats, replace(BuildOptions(), **options), recipes, activation="bf16"
            )
        return known[key]

    return make


def lowered(graph: RankGraph, tp: int = 1, ep: int = 1, **kv: Any) -> LoweredRank:
    return lower_cuda(shard(graph, CONFIG, Mapping(tp, ep, rank=tp - 1)), **kv)


def counts(rank: LoweredRank) -> Counter[str]:
    return Counter(n.op_type for n in rank.model.graph)


@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("formats", [FP8, MIXED, WeightFormats()], ids=["fp8", "mixed", "bf16"])
def test_the_ops_of_every_cut(traced: Any, formats: WeightFormats, tp: int, ep: int) -> None:
    rank = lowered(traced(formats), tp, ep)
    found, layers = counts(rank), CONFIG.layers
    assert set(found) <= PLUGIN_OPS | STANDARD_OPS
    assert not {"MatMul", "Transpose", "Constant", "M2Attention", "M2MoeRouting"} & set(found)
    assert found["M2PagedAttention"] == found["M2QkSumSquares"] == found["M2RouterLinear"] == layers
    assert found["M2MoeFp8" if formats.fp8 else "M2MoeBf16"] == layers
    assert found["Split"] == layers
    assert found["M2Fp8Linear"] == (2 * layers if formats == FP8 else 0)
    assert found["M2DenseLinear"] == 1 + (0 if formats == FP8 else 2 * layers)
    assert found["M2AddRmsNorm"] == 2 * layers  # every norm but the first
    assert found["RMSNormalization"] == 1
    assert found["Add"] == 0
    assert found["GatherND"] == 2  # the last token of attention's output and of the residual
    assert found["DistCollective"] == (0 if tp == 1 else 3 * layers + 2)
    assert found["Cast"] == 1  # of new_len


def test_inputs_and_outputs(traced: Any) -> None:
    graph = lowered(traced(FP8), 2).model.graph
    names = [value.name for value in graph.inputs]
    caches = [f"{x}_cache.{i}" for i in range(CONFIG.layers) for x in "kv"]
    assert names == ["input_ids", "past_len", "new_len", "block_table", *caches]
    assert [value.name for value in graph.outputs] == [
        "logits",
        *(n.replace("_cache", "_cache_out") for n in caches),
    ]
    assert graph.outputs[0].dtype == F32
    for value in (*graph.inputs[4:], *graph.outputs[1:]):
        assert value.dtype == BF16
        assert str(value.shape) == "[pages,64,2,128]"


def test_an_fp8_cache_changes_the_caches_alone(traced: Any) -> None:
    plain, small = lowered(traced(FP8)), lowered(traced(FP8), kv=ir.DataType.FLOAT8E4M3FN)
    assert [n.op_type for n in plain.model.graph] == [n.op_type for n in small.model.graph]
    kinds = {v.dtype for v in (*small.model.graph.inputs[4:], *small.model.graph.outputs[1:])}
    assert kinds == {ir.DataType.FLOAT8E4M3FN}


def test_logits_of_every_token_need_no_pick(traced: Any) -> None:
    rank = lowered(traced(FP8, all_logits=True), 2)
    assert counts(rank)["GatherND"] == 0
    assert rank.model.graph.outputs[0].dtype == F32


@pytest.mark.parametrize("tp", [1, 4])
def test_projections_are_joined_by_rows(traced: Any, tp: int) -> None:
    rank, width = lowered(traced(FP8), tp), CONFIG.q_width // tp
    kv = CONFIG.kv_width // tp
    name = "model.layers.0.self_attn.qkv_proj.weight"
    weight, scale = rank.recipes[name], rank.recipes[f"{name}_scale_inv"]
    assert (weight.dtype, weight.shape) == ("e4m3", (width + 2 * kv, CONFIG.hidden))
    assert scale.shape == ((width + 2 * kv) // 128, 1)
    assert isinstance(weight, Concat)
    assert not any("q_proj" in n or "k_proj" in n for n in rank.recipes)
    sizes = rank.model.graph.initializers[f"qkv_widths.{width}.{kv}.{kv}"].const_value
    assert sizes is not None
    assert sizes.numpy().tolist() == [width, kv, kv]


def test_projections_of_different_formats_stay_apart(traced: Any) -> None:
    formats = WeightFormats(FP8.fp8 - {"model.layers.1.self_attn.k_proj"})
    found = counts(lowered(traced(formats)))
    assert found["Split"] == CONFIG.layers - 1
    assert found["M2Fp8Linear"] == 2 * CONFIG.layers + 1
    assert found["M2DenseLinear"] == 2


def test_rows_that_end_inside_a_scale_block_stay_apart() -> None:
    """q has 3 heads of 64: 192 rows, one and a half blocks; k's first rows would share a scale with q's last."""
    config = model_config(hidden=128, heads=3, kv_heads=1, head_dim=64, intermediate=128)
    rank = lower_cuda(hand_graph(config, fp8_everywhere(config)))
    assert counts(rank)["Split"] == 0
    assert counts(rank)["M2Fp8Linear"] == 4 * config.layers


STORED = WeightFormats(
    dtypes=(
        ("model.embed_tokens.weight", "f32"),
        ("lm_head.weight", "f16"),
        ("model.norm.weight", "f32"),
        ("model.layers.0.mlp.gate.weight", "f32"),
        ("model.layers.1.mlp.gate.weight", "f16"),
        ("model.layers.0.mlp.e_score_correction_bias", "bf16"),
        ("model.layers.0.mlp.experts.gate_up_proj", "f32"),
        ("model.layers.1.self_attn.q_norm.weight", "f16"),
        ("model.layers.0.self_attn.o_proj.weight", "f32"),
    )
)


@pytest.mark.parametrize("tp", [1, 2])
def test_weights_are_stored_in_the_types_that_kernels_read(traced: Any, tp: int) -> None:
    rank = lowered(traced(STORED), tp)
    assert counts(rank)["Cast"] == 1  # of new_len
    for name, recipe in rank.recipes.items():
        wide = name.startswith("rope.") or name.endswith(("bias", "gate.weight"))
        kept = name.endswith("gate.weight") and "layers.0" not in name and "layers.1" not in name
        assert recipe.dtype == ("f32" if wide and not kept else "bf16"), name
        value = rank.model.graph.initializers[name]
        assert value.dtype == {"f32": F32, "bf16": BF16}[recipe.dtype]
        assert tuple(value.shape or ()) == recipe.shape
    assert isinstance(rank.recipes["model.layers.1.mlp.gate.weight"], Cast)
    assert not isinstance(rank.recipes["model.layers.0.mlp.gate.weight"], Cast)  # f32 is kept


def test_the_source_graph_is_left_as_it_is(traced: Any) -> None:
    graph = traced(FP8)
    before = [n.op_type for n in graph.model.graph], set(graph.recipes), len(graph.model.graph.inputs)
    lowered(graph)
    assert before == (
        [n.op_type for n in graph.model.graph],
        set(graph.recipes),
        len(graph.model.graph.inputs),
    )


def test_every_tensor_has_a_recipe_or_data_and_every_value_a_name(traced: Any) -> None:
    rank = lowered(traced(MIXED), 4, 2)
    graph = rank.model.graph
    stored = {n for n, v in graph.initializers.items() if v.const_value is None}
    assert stored == set(rank.recipes)
    made = [value.name for node in graph for value in node.outputs]
    assert len(made) == len(set(made))
    known = {*graph.initializers, *(v.name for v in graph.inputs)}
    for node in graph:  # an order in which they can run
        assert {value.name for value in node.inputs if value is not None} <= known
        known |= {value.name for value in node.outputs}
        if node.domain == "mm2c":
            assert set(node.attributes) == set(ops[node.op_type].schema.attributes)


def test_ranks_have_the_same_nodes(traced: Any) -> None:
    graph = traced(FP8)
    ranks = [lower_cuda(shard(graph, CONFIG, Mapping(4, 2, rank=r))) for r in range(4)]
    names = [[(n.op_type, n.name) for n in rank.model.graph] for rank in ranks]
    assert names[1:] == names[:1] * 3
    first = [
        next(nodes_of(RankGraph(r.model), "M2MoeFp8")).attributes["first_expert"].as_int() for r in ranks
    ]
    assert first == [0, 0, 4, 4]


@pytest.mark.parametrize(("tp", "ep"), [(1, 2), (1, 8), (2, 4)])
def test_attention_groups_exchange_their_tokens(traced: Any, tp: int, ep: int) -> None:
    mapping = Mapping(tp, ep, dp=ep // tp)
    ranks = [lower_cuda(shard(traced(FP8), CONFIG, mapping.at(rank))) for rank in range(mapping.ranks)]
    names = [[(n.op_type, n.name) for n in rank.model.graph] for rank in ranks]
    assert names[1:] == names[:1] * (mapping.ranks - 1)
    rank = ranks[-1]
    found, layers = counts(rank), CONFIG.layers
    assert set(found) <= PLUGIN_OPS | STANDARD_OPS
    assert found["M2MoeFp8"] == layers
    assert found["M2AddRmsNorm"] == 2 * layers - 1  # in front of the last norm rows are picked from the sum
    assert found["DistCollective"] == 2 * layers + (3 * layers + 2 if tp > 1 else 0)
    given = [value.name for value in rank.model.graph.inputs]
    assert given[:6] == ["input_ids", "past_len", "new_len", "block_table", "step_tokens", "k_cache.0"]
    for node in rank.model.graph:
        if node.op_type == "DistCollective" and ".mlp." in str(node.name):
            assert node.outputs[0].dtype == BF16  # of activations, not of logits


def test_a_padded_vocabulary_stays_f32(traced: Any) -> None:
    """97 entries over 2 ranks: cut, filled up and gathered in f32, as the head gives them."""
    for rank in (0, 1):
        graph = lower_cuda(shard(traced(FP8), CONFIG, Mapping(2, rank=rank))).model.graph
        behind = [n for n in graph if str(n.name).startswith("lm_head")]
        assert [n.op_type for n in behind] == [
            "M2DenseLinear", "Slice", "CastLike", "Pad", "DistCollective", "Slice",
        ]  # fmt: skip
        assert {n.outputs[0].dtype for n in behind} == {F32}


def test_what_the_engine_does_not_know_is_a_defect(traced: Any) -> None:
    graph = RankGraph(traced(FP8).model.clone(), traced(FP8).recipes)
    logits = graph.model.graph.outputs[0]
    node = ir.node("Tanh", [logits], name="surprise")
    node.outputs[0].name = "bounded"
    graph.model.graph.append(node)
    graph.model.graph.outputs.append(node.outputs[0])
    with pytest.raises(PassError, match="surprise: the cuda engine has no ONNX op Tanh"):
        lower_cuda(graph)


def test_other_scale_blocks_are_a_defect() -> None:
    config: ModelConfig = CONFIG
    graph = hand_graph(config, FP8)
    next(nodes_of(graph, "M2MoeExpertsFp8")).attributes["block_k"] = ir.AttrInt64("block_k", 32)
    with pytest.raises(PassError, match="block_k is 32"):
        lower_cuda(graph)
