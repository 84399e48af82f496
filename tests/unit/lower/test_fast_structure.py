"""What the fast lowering makes of a layer."""

from __future__ import annotations

from collections import Counter

from hand_graph import fp8_everywhere, hand_graph, model_config

from mm2c.config import Mapping
from mm2c.lower.contrib_experts import SLICES
from mm2c.lower.fast import lower_fast
from mm2c.lower.program import LoweredRank
from mm2c.passes.shard import shard
from mm2c_runtime.weights.recipe import Concat, Dequantize, Interleave, Slice, Transpose

CONFIG = model_config(hidden=128, head_dim=128, intermediate=512)


def ops(rank: LoweredRank) -> Counter[str]:
    return Counter(node.op_type for node in rank.model.graph)


def test_one_kernel_for_each_part_of_a_layer() -> None:
    count = ops(lower_fast(hand_graph(CONFIG, fp8_everywhere(CONFIG))))
    layers = CONFIG.layers
    assert count["GroupQueryAttention"] == count["MoE"] == layers
    assert count["MatMul"] == 3 * layers + 1  # q, k, v together; o; gate; and the head
    assert count["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert count["SimplifiedLayerNormalization"] == 2 * layers + 1  # q, k; and the first
    assert not {"RMSNormalization", "M2Fp8Linear", "M2QkSumSquares", "Transpose"} & set(count)


def test_ranks_norm_with_the_reduced_sums() -> None:
    count = ops(lower_fast(shard(hand_graph(CONFIG), CONFIG, Mapping(2))))
    assert count["SimplifiedLayerNormalization"] == 1
    assert count["ReduceSumSquare"] == 2 * CONFIG.layers
    assert count["DistCollective"] == 3 * CONFIG.layers + 2


def test_weights_are_f32_in_kernel_layout() -> None:
    rank = lower_fast(hand_graph(CONFIG, fp8_everywhere(CONFIG)))
    module = "model.layers.0"
    assert rank.recipes[f"{module}.self_attn.qkv_proj.weight.t"].shape == (128, (8 + 4 + 4) * 128)
    gate_up = rank.recipes[f"{module}.mlp.experts.gate_up_proj.moe"]
    assert isinstance(gate_up, Concat)
    first = gate_up.parts[0]  # of every expert the first half of its width, gate and up rows alternating
    assert isinstance(first, Slice)
    assert isinstance(first.of, Interleave)
    assert isinstance(first.of.of, Dequantize)
    assert gate_up.shape == (SLICES * 8, 1024 // SLICES, 128)
    assert rank.recipes[f"{module}.mlp.experts.down_proj.moe"].shape == (SLICES * 8, 128, 512 // SLICES)
    output = rank.recipes[f"{module}.self_attn.o_proj.weight.t"]
    assert isinstance(output, Transpose)
    assert output.shape == (1024, 128)
    embedding = "model.embed_tokens.weight"  # gathered, then cast: stays as stored
    assert {name for name, recipe in rank.recipes.items() if recipe.dtype != "f32"} == {embedding}
    assert set(rank.recipes) == {n for n, v in rank.model.graph.initializers.items() if v.const_value is None}


def test_only_the_last_token_passes_the_last_experts() -> None:
    for graph in (hand_graph(CONFIG), shard(hand_graph(CONFIG), CONFIG, Mapping(2))):
        rank = lower_fast(graph)
        nodes = list(rank.model.graph)
        picks = [i for i, node in enumerate(nodes) if node.op_type == "GatherND"]
        attention = [i for i, node in enumerate(nodes) if node.op_type == "GroupQueryAttention"]
        experts = [i for i, node in enumerate(nodes) if node.op_type == "MoE"]
        assert len(picks) == 2  # what attention says, and the residual
        assert attention[-1] < picks[0]
        assert experts[-2] < picks[0] < experts[-1]


def test_the_dialect_graph_is_left_as_it_is() -> None:
    graph = hand_graph(CONFIG)
    before = [(node.op_type, node.name) for node in graph.model.graph]
    lower_fast(graph)
    assert [(node.op_type, node.name) for node in graph.model.graph] == before
