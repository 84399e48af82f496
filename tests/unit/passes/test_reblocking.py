"""Cuts that divide scale blocks: the ranks' dequantised weights are the whole ones, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hand_graph import RandomCheckpoint, fp8_everywhere, hand_graph, model_config

from mm2c.config import Mapping
from mm2c.passes.edit import consumer_of
from mm2c.passes.shard import shard
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import Repeat, Stack

Array = np.ndarray[Any, Any]
# as tp 8 of the released model (1536 / 8 = 192), and narrower: 96, 48, 10 and 24 of 128
CUTS = [(384, 2, 64), (768, 4, 64), (384, 4, 32), (384, 8, 16), (40, 4, 2), (192, 8, 8), (512, 4, 128)]


def dense(weight: Array, scale: Array, block_n: int, block_k: int) -> Array:
    """weight[…, N, K] times its blocks' scales, in f32."""
    n, k = weight.shape[-2:]
    wide = np.repeat(np.repeat(scale, block_n, -2), block_k, -1)
    assert scale.shape[-2:] == (-(-n // block_n), -(-k // block_k))
    return weight.astype(np.float32) * wide[..., :n, :k]


def experts(graph: RankGraph, reader: RandomCheckpoint, layer: int = 0) -> tuple[Array, Array, Array]:
    """Dequantised gate, up[E, I, H] and down[E, H, I] of a graph, each in the blocks that its node states."""
    node = [n for n in graph.model.graph if n.op_type == "M2MoeExpertsFp8"][layer]
    block_n, block_k = node.attributes["block_n"].as_int(), node.attributes["block_k"].as_int()
    w13, w13_scale, w2, w2_scale = (
        evaluate(graph.recipes[str(v.name)], reader) for v in node.inputs[3:] if v
    )
    gate, up = (
        dense(weight, scale, block_n, block_k)
        for weight, scale in zip(np.split(w13, 2, 1), np.split(w13_scale, 2, 1), strict=True)
    )
    return gate, up, dense(w2, w2_scale, block_k, block_n)


def same_bits(found: Array, expected: Array) -> None:
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("intermediate", "tp", "block"), CUTS)
@pytest.mark.parametrize("ep", [1, 2])
def test_experts(intermediate: int, tp: int, block: int, ep: int) -> None:
    config = model_config(intermediate=intermediate, hidden=200, heads=16, kv_heads=8, experts=4, layers=1)
    graph = hand_graph(config, fp8_everywhere(config))
    reader = RandomCheckpoint(graph.recipes)
    whole = experts(graph, reader)
    ranks = [shard(graph, config, Mapping(tp * ep, ep, rank=rank)) for rank in range(tp * ep)]
    groups = [ranks[first : first + tp] for first in range(0, len(ranks), tp)]
    for number, group in enumerate(groups):
        parts = [experts(own, reader) for own in group]
        own = slice(number * 4 // ep, (number + 1) * 4 // ep)
        for index, axis in enumerate((1, 1, 2)):
            same_bits(np.concatenate([part[index] for part in parts], axis), whole[index][own])
    for rank in ranks:
        node = next(n for n in rank.model.graph if n.op_type == "M2MoeExpertsFp8")
        assert (node.attributes["block_n"].as_int(), node.attributes["block_k"].as_int()) == (block, 128)
        recipe = rank.recipes["model.layers.0.mlp.experts.gate_up_proj_scale_inv"]
        assert isinstance(recipe, Stack)  # written expert by expert


@pytest.mark.parametrize(("kv_heads", "tp"), [(8, 2), (8, 8), (4, 8), (1, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("head_dim", [32, 96])
def test_attention(kv_heads: int, tp: int, head_dim: int) -> None:
    config = model_config(
        hidden=200, heads=8, kv_heads=kv_heads, head_dim=head_dim, layers=1, intermediate=64
    )
    graph = hand_graph(config, fp8_everywhere(config))
    reader = RandomCheckpoint(graph.recipes)
    ranks = [shard(graph, config, Mapping(tp, rank=rank)) for rank in range(tp)]
    copies = max(tp // kv_heads, 1)
    for name, axis in (("q", 0), ("k", 0), ("v", 0), ("o", 1)):
        module = f"model.layers.0.self_attn.{name}_proj"
        parts = [linear(own, module, reader) for own in ranks]
        if name in "kv":  # ``copies`` ranks, one after the other, hold the same head
            for first in range(0, tp, copies):
                for other in parts[first + 1 : first + copies]:
                    same_bits(other, parts[first])
            parts = parts[::copies]
        same_bits(np.concatenate(parts, axis), linear(graph, module, reader))
    for own in ranks:
        node = next(n for n in own.model.graph if n.op_type == "M2Attention")
        assert node.attributes["q_total"].as_int() == config.q_width
        assert node.attributes["k_total"].as_int() == config.kv_width * copies
        assert node.attributes["heads"].as_int() == 8 // tp
        assert node.attributes["kv_heads"].as_int() == max(kv_heads // tp, 1)


def linear(graph: RankGraph, module: str, reader: RandomCheckpoint) -> Array:
    node = consumer_of(graph, f"{module}.weight")
    weight, scale = (evaluate(graph.recipes[f"{module}.weight{end}"], reader) for end in ("", "_scale_inv"))
    return dense(weight, scale, node.attributes["block_n"].as_int(), node.attributes["block_k"].as_int())


def test_cuts_along_blocks_repeat_nothing() -> None:
    config = model_config(hidden=128, head_dim=128, intermediate=512, kv_heads=8)
    graph = hand_graph(config, fp8_everywhere(config))
    own = shard(graph, config, Mapping(4, rank=1))
    assert not any(isinstance(part, Repeat) for recipe in own.recipes.values() for part in _tree(recipe))
    for node in own.model.graph:
        if "block_n" in node.attributes:
            assert isinstance(node.attributes["block_n"], ir.Attr)
            assert {node.attributes[side].as_int() for side in ("block_n", "block_k")} == {128}


def _tree(recipe: Any) -> list[Any]:
    inner = [*getattr(recipe, "parts", ()), *([recipe.of] if hasattr(recipe, "of") else [])]
    return [recipe, *(part for other in inner for part in _tree(other))]
