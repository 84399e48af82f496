"""Structure of sharded graphs, and ranks' tensors tiling the whole ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hand_graph import RandomCheckpoint, fp8_everywhere, hand_graph, model_config

from mm2c.collectives import plan_collectives
from mm2c.config import Mapping, ModelConfig
from mm2c.errors import UserError
from mm2c.passes.edit import PassError
from mm2c.passes.shard import shard
from mm2c.passes.shard_heads import shard_heads
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.evaluate import evaluate

CONFIG = model_config(hidden=128, heads=8, kv_heads=4, head_dim=128, intermediate=512, experts=8, vocab=97)
CUTS = [(2, 1), (4, 1), (2, 2), (4, 2), (4, 4)]
ALL_CUTS = [*CUTS, (8, 1), (8, 8), (1, 2), (1, 8), (2, 4), (4, 8)]


def ranks(graph: RankGraph, config: ModelConfig, tp: int, ep: int) -> list[RankGraph]:
    mapping = Mapping(tp, ep, dp=max(ep // tp, 1))
    return [shard(graph, config, mapping.at(rank)) for rank in range(mapping.ranks)]


def text(graph: RankGraph) -> bytes:
    return ir.to_proto(graph.model).SerializeToString(deterministic=True)


def collectives(graph: RankGraph) -> list[ir.Node]:
    return [n for n in graph.model.graph if n.op_type == "DistCollective"]


def test_one_rank_is_the_graph_itself() -> None:
    graph = hand_graph(CONFIG)
    assert shard(graph, CONFIG, Mapping()) is graph


@pytest.mark.parametrize("fp8", [False, True])
def test_the_whole_graph_is_left_as_it_is(fp8: bool) -> None:
    graph = hand_graph(CONFIG, fp8_everywhere(CONFIG) if fp8 else None)
    shapes = {name: tuple(value.shape or ()) for name, value in graph.model.graph.initializers.items()}
    recipes = dict(graph.recipes)
    ranks(graph, CONFIG, 4, 2)
    assert {
        name: tuple(value.shape or ()) for name, value in graph.model.graph.initializers.items()
    } == shapes
    assert graph.recipes == recipes
    assert not collectives(graph)


@pytest.mark.parametrize(("tp", "ep"), CUTS)
def test_three_all_reduces_a_layer(tp: int, ep: int) -> None:
    graph = hand_graph(CONFIG, fp8_everywhere(CONFIG))
    shared = None
    for own in ranks(graph, CONFIG, tp, ep):
        names = [str(n.name) for n in collectives(own)]
        for layer in range(CONFIG.layers):
            prefix = f"model.layers.{layer}."
            of_layer = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            assert of_layer == [
                "self_attn.qk_sums.all_reduce",
                "self_attn.o_proj.all_reduce",
                "mlp.experts.all_reduce",
            ]
        assert names[0] == "model.embed_tokens.all_reduce"
        assert names[-1] == "lm_head.all_gather"
        assert len(names) == 3 * CONFIG.layers + 2
        values = [value.name for node in own.model.graph for value in node.outputs]
        shared = shared or (values, names)
        assert (values, names) == shared  # the same on every rank
        for node in collectives(own):
            assert node.attributes["nb_rank"].as_int() == tp
            assert list(node.attributes["groups"].as_ints()) == list(range(tp))


@pytest.mark.parametrize(("tp", "ep"), ALL_CUTS)
@pytest.mark.parametrize("fp8", [False, True])
def test_the_graph_has_the_planned_collectives(tp: int, ep: int, fp8: bool) -> None:
    graph = hand_graph(CONFIG, fp8_everywhere(CONFIG) if fp8 else None)
    mapping = Mapping(tp, ep, dp=max(ep // tp, 1))
    planned = plan_collectives(CONFIG, mapping, tokens=1, rows=1, itemsize=4)
    for own in ranks(graph, CONFIG, tp, ep):
        nodes = collectives(own)
        kinds = [n.attributes["collective_operation"].as_string() for n in nodes]
        assert [(n.name, kind) for n, kind in zip(nodes, kinds, strict=True)] == [
            (message.name, message.kind) for message in planned
        ]
        for node, message in zip(nodes, planned, strict=True):
            over_tokens = ".tokens." in message.name or message.kind == "reduce_scatter"
            groups = mapping.token_groups if over_tokens else mapping.tp_groups
            assert list(node.attributes["groups"].as_ints()) == [rank for group in groups for rank in group]
            assert node.attributes["group_size"].as_int() == len(groups[0])
            assert node.attributes["nb_rank"].as_int() == mapping.ranks


def test_a_collective_too_many_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm2c.passes.shard.plan_collectives", lambda *a, **k: plan_collectives(*a, **k)[:-1])
    with pytest.raises(PassError, match=r"8 collectives, 7 planned; they differ in .*lm_head.all_gather"):
        shard(hand_graph(CONFIG), CONFIG, Mapping(2))


@pytest.mark.parametrize(("tp", "ep"), [(1, 2), (2, 4)])
def test_attention_dp_has_an_input_more(tp: int, ep: int) -> None:
    graph = hand_graph(CONFIG)
    for own in ranks(graph, CONFIG, tp, ep):
        names = [value.name for value in own.model.graph.inputs]
        assert names[:5] == ["input_ids", "past_len", "new_len", "step_tokens", "k_cache.0"]
        assert str(own.model.graph.inputs[3].shape) == "[1]"
        for node in own.model.graph:
            if node.op_type == "M2Attention" and tp == 1:
                assert node.attributes["heads"].as_int() == CONFIG.heads
    first = [
        next(n for n in own.model.graph if n.op_type == "M2MoeExpertsBf16")
        .attributes["first_expert"]
        .as_int()
        for own in ranks(graph, CONFIG, tp, ep)
    ]
    assert first == [CONFIG.experts // ep * rank for rank in range(ep)]


@pytest.mark.parametrize("tp", [2, 8])
def test_missing_logits_are_the_least_there_are(tp: int) -> None:
    """97 entries: the last rank lacks some, and every rank has the same nodes for it."""
    rows = -(-CONFIG.vocab // tp)
    for rank, own in enumerate(ranks(hand_graph(CONFIG), CONFIG, tp, 1)):
        pad = next(n for n in own.model.graph if n.op_type == "Pad")
        missing = own.model.graph.initializers["vocabulary.missing"].const_value
        least = own.model.graph.initializers["vocabulary.least"].const_value
        assert missing is not None
        assert least is not None
        assert missing.numpy().tolist() == [0, rows - min(rows, CONFIG.vocab - rank * rows)]
        assert np.isneginf(least.numpy())
        assert [user.op_type for user in pad.outputs[0].consumers()] == ["DistCollective"]


def test_a_vocabulary_that_tp_divides_is_not_padded() -> None:
    config = model_config()
    assert not any(n.op_type == "Pad" for n in shard(hand_graph(config), config, Mapping(2)).model.graph)


def test_both_sums_of_squares_travel_in_one_message() -> None:
    own = shard(hand_graph(CONFIG), CONFIG, Mapping(2))
    for node in collectives(own):
        if "qk_sums" in str(node.name):
            producer = node.inputs[0].producer() if node.inputs[0] is not None else None
            assert producer is not None
            assert producer.op_type == "M2QkSumSquares"  # s[B, S, 2]
            assert [user.op_type for user in node.outputs[0].consumers()] == ["M2Attention"]


def test_attention_keeps_the_global_divisors() -> None:
    own = shard(hand_graph(CONFIG), CONFIG, Mapping(4, rank=3))
    for node in own.model.graph:
        if node.op_type == "M2Attention":
            attributes = {
                name: node.attributes[name].as_int() for name in ("heads", "kv_heads", "q_total", "k_total")
            }
            assert attributes == {"heads": 2, "kv_heads": 1, "q_total": 1024, "k_total": 512}
    for value in (*own.model.graph.inputs, *own.model.graph.outputs):
        if "_cache" in str(value.name):
            assert value.shape is not None
            assert value.shape[1] == 1
    assert own.model.graph.outputs[0].name == "logits"


def test_every_rank_returns_the_whole_logits() -> None:
    graph = hand_graph(CONFIG)
    for own in ranks(graph, CONFIG, 4, 1):
        logits = own.model.graph.outputs[0]
        assert str(logits.shape) == str(graph.model.graph.outputs[0].shape)
        assert logits.shape is not None
        assert logits.shape[-1] == CONFIG.vocab


def test_first_expert_follows_the_group() -> None:
    graph = hand_graph(CONFIG)
    for own, expected in zip(ranks(graph, CONFIG, 4, 2), (0, 0, 4, 4), strict=True):
        nodes = [n for n in own.model.graph if n.op_type == "M2MoeExpertsBf16"]
        assert [n.attributes["first_expert"].as_int() for n in nodes] == [expected] * CONFIG.layers


def _assembled(name: str, parts: list[np.ndarray[Any, Any]], tp: int, ep: int) -> np.ndarray[Any, Any]:
    """What the ranks' tensors of one name make together."""
    if ".experts." in name:
        cut = tp // ep
        groups = []
        for group in range(ep):
            own = parts[group * cut : (group + 1) * cut]
            if "gate_up" in name:
                halves = [np.split(part, 2, axis=1) for part in own]
                groups.append(
                    np.concatenate([half for i in range(2) for half in (h[i] for h in halves)], axis=1)
                )
            else:
                groups.append(np.concatenate(own, axis=2))
        return np.concatenate(groups, axis=0)
    if "o_proj" in name:
        return np.concatenate(parts, axis=1)
    if (
        "_proj" in name
        or "q_norm" in name
        or "k_norm" in name
        or name in ("lm_head.weight", "model.embed_tokens.weight")
    ):
        return np.concatenate(parts, axis=0)
    for part in parts[1:]:
        np.testing.assert_array_equal(part, parts[0])
    return parts[0]


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("tp", "ep"), CUTS)
def test_rank_tensors_tile_the_whole(tp: int, ep: int, fp8: bool) -> None:
    graph = hand_graph(CONFIG, fp8_everywhere(CONFIG) if fp8 else None)
    reader = RandomCheckpoint(graph.recipes)
    cut = ranks(graph, CONFIG, tp, ep)
    for name, recipe in graph.recipes.items():
        whole = np.ascontiguousarray(evaluate(recipe, reader))
        parts = [evaluate(own.recipes[name], reader) for own in cut]
        for own, part in zip(cut, parts, strict=True):
            assert (
                tuple(own.model.graph.initializers[name].shape or ()) == part.shape == own.recipes[name].shape
            )
        joined = np.ascontiguousarray(_assembled(name, parts, tp, ep))
        if name in ("lm_head.weight", "model.embed_tokens.weight"):
            assert not joined[CONFIG.vocab :].any()  # padding
            joined = np.ascontiguousarray(joined[: CONFIG.vocab])
        assert joined.dtype == whole.dtype, name
        np.testing.assert_array_equal(joined.view(np.uint8), whole.view(np.uint8), err_msg=name)


def test_same_input_same_graph() -> None:
    first, second = (shard(hand_graph(CONFIG), CONFIG, Mapping(4, 2, rank=1)) for _ in range(2))
    assert text(first) == text(second)


def test_an_illegal_cut_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="query heads"):
        shard(hand_graph(CONFIG), CONFIG, Mapping(3))


def test_a_graph_of_another_model_is_a_defect() -> None:
    with pytest.raises(PassError, match="2 M2Attention nodes in a model of 3 layers"):
        shard_heads(hand_graph(CONFIG), model_config(layers=3, heads=8, kv_heads=4, head_dim=128), Mapping(2))
