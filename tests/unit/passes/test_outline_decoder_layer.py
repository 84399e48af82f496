"""Outlining is exact: inlined again every node is as before, and ONNX Runtime computes the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hand_graph import RandomCheckpoint, fp8_everywhere, hand_graph, model_config

from mm2c.config import ModelConfig, WeightFormats
from mm2c.lower.portable import attach_bodies
from mm2c.passes.edit import PassError
from mm2c.passes.outline_decoder_layer import (
    FUNCTION,
    inline_decoder_layers,
    is_layer_call,
    layers_of,
    outline_decoder_layers,
)
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.evaluate import evaluate


def with_bodies(graph: RankGraph) -> ir.Model:
    """A copy with function bodies, its nodes named after their layers, as those of a trace are."""
    model = graph.model.clone()
    known = {id(node): layer for layer, nodes in layers_of(model.graph).items() for node in nodes}
    layer, place = -1, 0
    for node in model.graph:
        place = place + 1 if known.get(id(node), layer) == layer else 0
        layer = known.get(id(node), layer)
        if node.op_type == "GatherND":
            break
        if layer >= 0:
            node.name = f"model.layers.{layer}/{node.op_type}.{place}"
            for index, value in enumerate(node.outputs):
                if not value.is_graph_output():
                    value.name = f"{node.name}:{index}"
    attach_bodies(model, collectives=True)
    return model


def node_facts(node: ir.Node) -> tuple[Any, ...]:
    attributes = sorted((name, repr(attribute)) for name, attribute in node.attributes.items())
    inputs = [None if value is None else value.name for value in node.inputs]
    return (node.domain, node.op_type, node.name, inputs, [v.name for v in node.outputs], attributes)


def facts(model: ir.Model) -> list[tuple[Any, ...]]:
    return [node_facts(node) for node in model.graph]


def calls(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if is_layer_call(node)]


def run(model: ir.Model, graph: RankGraph, config: ModelConfig, seed: int) -> list[np.ndarray[Any, Any]]:
    """The outputs of a prefill of two ragged rows."""
    reader = RandomCheckpoint(graph.recipes)
    for name, value in model.graph.initializers.items():
        if name in graph.recipes:
            value.const_value = ir.Tensor(
                np.ascontiguousarray(evaluate(graph.recipes[name], reader)), dtype=value.dtype, name=name
            )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    text = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(text, options, providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(seed)
    feeds: dict[str, Any] = {
        "input_ids": draw.integers(0, config.vocab, (2, 5)),
        "past_len": np.array([0, 3], np.int32),
        "new_len": np.array([5, 2], np.int32),
    }
    for layer in range(config.layers):
        for kind in "kv":
            cache = draw.standard_normal((2, config.kv_heads, 12, config.head_dim)).astype(np.float32)
            feeds[f"{kind}_cache.{layer}"] = cache
    outputs: list[np.ndarray[Any, Any]] = session.run(None, feeds)
    return outputs


@pytest.mark.parametrize("fp8", [True, False])
def test_outlined_and_inlined_again_every_node_is_as_before(fp8: bool) -> None:
    config = model_config(layers=3)
    model = with_bodies(hand_graph(config, fp8_everywhere(config) if fp8 else None))
    before, functions = facts(model), set(model.functions)
    outline_decoder_layers(model)
    assert [call.name for call in calls(model)] == [f"model.layers.{i}" for i in range(3)]
    assert {call.op_type for call in calls(model)} == {FUNCTION}
    inline_decoder_layers(model)
    assert facts(model) == before
    assert set(model.functions) == functions


@pytest.mark.parametrize("fp8", [True, False])
def test_onnx_runtime_computes_the_same_bits(fp8: bool) -> None:
    config = model_config(hidden=128, head_dim=128, intermediate=128)
    graph = hand_graph(config, fp8_everywhere(config) if fp8 else None)
    plain = run(with_bodies(graph), graph, config, 1)
    outlined = outline_decoder_layers(with_bodies(graph))
    for a, b in zip(plain, run(outlined, graph, config, 1), strict=True):
        assert a.tobytes() == b.tobytes()
    onnx.checker.check_model(ir.to_proto(outlined))


def test_no_layer_is_named_inside_the_function() -> None:
    model = outline_decoder_layers(with_bodies(hand_graph(model_config(layers=4))))
    function = model.functions[("mm2c", FUNCTION, "")]
    names = [value.name or "" for value in function.inputs]
    names += [value.name or "" for node in function for value in node.outputs]
    assert len(names) == len(set(names))
    assert not any("layers." in name for name in [*names, *(node.name or "" for node in function)])
    assert {"hidden", "k_cache", "v_cache", "self_attn.q_proj.weight", "past_len"} <= set(names)
    assert {"k_cache_out", "v_cache_out"} <= {value.name for value in function.outputs}


def test_calls_are_wired_to_each_other() -> None:
    model = outline_decoder_layers(with_bodies(hand_graph(model_config(layers=3))))
    first, second, third = calls(model)
    for before, after in ((first, second), (second, third)):
        assert any(value is not None and value.producer() is before for value in after.inputs)
    producers = {value.name: value.producer() for value in model.graph.outputs}
    assert producers["k_cache_out.1"] is second
    assert producers["v_cache_out.2"] is third


def test_a_layer_with_another_attribute_gets_a_function_of_its_own() -> None:
    config = model_config(layers=3)
    model = with_bodies(hand_graph(config))
    for node in model.graph:
        if node.op_type == "M2MoeRouting" and layers_of(model.graph)[1].count(node):
            node.attributes["top_k"] = ir.AttrInt64("top_k", 1)
    before = facts(model)
    outline_decoder_layers(model)
    assert [call.op_type for call in calls(model)] == [FUNCTION, f"{FUNCTION}_1", FUNCTION]
    inline_decoder_layers(model)
    assert facts(model) == before


def test_layers_of_other_weight_formats_get_functions_of_their_own() -> None:
    config = model_config(layers=4)
    formats = WeightFormats(fp8=frozenset({"model.layers.0.mlp.experts"}))
    model = outline_decoder_layers(with_bodies(hand_graph(config, formats)))
    assert [call.op_type for call in calls(model)] == [f"{FUNCTION}_0", *[FUNCTION] * 3]


def test_a_graph_without_layers_is_left_alone() -> None:
    x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Neg", [x])
    node.outputs[0].name = "y"
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23}), ir_version=11)
    outline_decoder_layers(model)
    assert [n.op_type for n in model.graph] == ["Neg"]


def test_a_layer_that_reads_a_later_one_is_refused() -> None:
    x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    second = ir.node("Neg", [x], name="model.layers.1.a")
    second.outputs[0].name = "a"
    first = ir.node("Neg", second.outputs, name="model.layers.0.b")
    first.outputs[0].name = "b"
    graph = ir.Graph([x], first.outputs, nodes=[second, first], opset_imports={"": 23})
    with pytest.raises(PassError, match=r"model\.layers\.0\.b of layer 0 reads what a later layer makes"):
        outline_decoder_layers(ir.Model(graph, ir_version=11))
