"""Traced graphs: all layers become one function, names come back, and ONNX Runtime computes the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from traced_model import config, formats, random_weights

from mm2c.checkpoint.recipes import recipes_for_config
from mm2c.config import BuildOptions, Mapping
from mm2c.lower.cuda import lower_cuda
from mm2c.lower.portable import attach_bodies
from mm2c.passes.outline_decoder_layer import inline_decoder_layers, is_layer_call, outline_decoder_layers
from mm2c.passes.shard import shard
from mm2c.trace import trace
from mm2c.weights.rank_graph import RankGraph

LAYERS = 4


def traced(**options: Any) -> RankGraph:
    model, stored = config(layers=LAYERS), formats(config(layers=LAYERS), attention=True, experts=True)
    return trace(model, stored, BuildOptions(), recipes_for_config(model, stored), **options)


def with_bodies(model: ir.Model) -> ir.Model:
    copied = model.clone()
    attach_bodies(copied, collectives=True)
    return copied


def facts(model: ir.Model) -> list[Any]:
    return [
        (
            n.name,
            n.domain,
            n.op_type,
            [None if v is None else v.name for v in n.inputs],
            [v.name for v in n.outputs],
            sorted((name, repr(attribute)) for name, attribute in n.attributes.items()),
        )
        for n in model.graph
    ]


def run(model: ir.Model, weights: dict[str, Any], feeds: dict[str, Any]) -> list[Any]:
    for name, value in model.graph.initializers.items():
        if name in weights:
            value.const_value = ir.Tensor(weights[name], dtype=value.dtype, name=name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    text = ir.to_proto(model).SerializeToString()
    outputs: list[Any] = onnxruntime.InferenceSession(text, options, ["CPUExecutionProvider"]).run(
        None, feeds
    )
    return outputs


@pytest.fixture(scope="module")
def whole() -> RankGraph:
    return traced()


def test_one_function_and_every_node_comes_back(whole: RankGraph) -> None:
    for tp in (1, 2):
        model = with_bodies(shard(whole, config(layers=LAYERS), Mapping(tp)).model)
        before = facts(model)
        outline_decoder_layers(model)
        called = [node.op_type for node in model.graph if is_layer_call(node)]
        assert called == ["DecoderLayer"] * LAYERS
        assert facts(inline_decoder_layers(model)) == before


def test_the_same_bits(whole: RankGraph) -> None:
    model = config(layers=LAYERS)
    weights = random_weights(whole, model, 5)
    draw = np.random.default_rng(5)
    feeds: dict[str, Any] = {
        "input_ids": draw.integers(0, model.vocab, (2, 4)),
        "past_len": np.array([2, 0], np.int32),
        "new_len": np.array([4, 3], np.int32),
    }
    for layer in range(LAYERS):
        for kind in "kv":
            shape = (2, model.kv_heads, 8, model.head_dim)
            feeds[f"{kind}_cache.{layer}"] = draw.standard_normal(shape).astype(np.float32)
    plain = run(with_bodies(whole.model), weights, feeds)
    outlined = run(outline_decoder_layers(with_bodies(whole.model)), weights, feeds)
    assert [a.tobytes() for a in plain] == [b.tobytes() for b in outlined]


def test_the_paged_graph_has_a_first_a_last_and_one_for_the_rest() -> None:
    model = config(layers=LAYERS, heads=6, hidden=128, head_dim=64, intermediate=128)
    stored = formats(model, attention=True, experts=True)
    graph = trace(model, stored, BuildOptions(), recipes_for_config(model, stored), activation="bf16")
    lowered = with_bodies(lower_cuda(graph).model)
    before = facts(lowered)
    outline_decoder_layers(lowered)
    called = [node.op_type for node in lowered.graph if is_layer_call(node)]
    assert called == ["DecoderLayer_0", *["DecoderLayer"] * (LAYERS - 2), f"DecoderLayer_{LAYERS - 1}"]
    inline_decoder_layers(lowered)

    def without_names(nodes: list[Any]) -> list[Any]:
        """Ops with their attributes, in order: names that do not say their layer are given it."""
        return sorted((str(node[1:3]), str(node[5]), len(node[3]), len(node[4])) for node in nodes)

    assert without_names(facts(lowered)) == without_names(before)
    named = {node[0] for node in before if str(node[0]).startswith("model.layers.")}
    assert named <= {node[0] for node in facts(lowered)}
