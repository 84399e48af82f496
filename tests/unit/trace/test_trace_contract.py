"""What the traced graph promises to the stages after it: names, orders, types, no data, no leftovers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import onnx_ir as ir
import pytest
from traced_model import config, formats, random_weights, serialised

from mm2c.checkpoint.recipes import recipes_for_config
from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.trace import trace
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.recipe import Source

SHAPE = config(layers=3, intermediate=128)


def traced(shape: ModelConfig, kinds: WeightFormats, **options: object) -> RankGraph:
    choice = BuildOptions(**options)  # type: ignore[arg-type]
    return trace(shape, kinds, choice, recipes_for_config(shape, kinds, context=choice.context or None))


@pytest.fixture(scope="module")
def graph() -> RankGraph:
    return traced(SHAPE, formats(SHAPE, attention=True, experts=True))


def described(value: ir.Value) -> tuple[str | None, str, list[object]]:
    assert value.dtype is not None
    assert value.shape is not None
    return value.name, value.dtype.name, [d if isinstance(d, int) else d.value for d in value.shape]


def test_inputs_and_outputs(graph: RankGraph) -> None:
    cache = ["batch", SHAPE.kv_heads, "kv_len", SHAPE.head_dim]
    assert [described(v) for v in graph.model.graph.inputs] == [
        ("input_ids", "INT64", ["batch", "seq"]),
        ("past_len", "INT32", ["batch"]),
        ("new_len", "INT32", ["batch"]),
        *[(f"{kind}_cache.{layer}", "FLOAT", cache) for layer in range(3) for kind in "kv"],
    ]
    assert [described(v) for v in graph.model.graph.outputs] == [
        ("logits", "FLOAT", ["batch", SHAPE.vocab]),
        *[(f"{kind}_cache_out.{layer}", "FLOAT", cache) for layer in range(3) for kind in "kv"],
    ]


@pytest.mark.parametrize("layers", [3, 13])
def test_sizes_come_from_the_ids(layers: int) -> None:
    """With twelve layers and more the exporter finds the batch at k_cache.11."""
    shape = replace(SHAPE, layers=layers)
    graph = traced(shape, formats(shape, attention=True, experts=True)).model.graph
    read = [node.inputs[0].name for node in graph if node.op_type == "Shape" and node.inputs[0] is not None]
    assert set(read) == {"input_ids"}


def test_all_logits_and_context() -> None:
    shape = replace(SHAPE, layers=1)
    graph = traced(shape, formats(shape), all_logits=True, context=32)
    assert described(graph.model.graph.outputs[0]) == ("logits", "FLOAT", ["batch", "seq", SHAPE.vocab])
    assert graph.recipes["rope.cos"].shape == (32, SHAPE.rope.rotary_dim // 2)
    assert not [n for n in graph.model.graph if n.op_type == "GatherND"]


def test_initializers_are_those_of_the_recipes_and_hold_nothing(graph: RankGraph) -> None:
    initializers = graph.model.graph.initializers
    assert set(initializers) == set(graph.recipes)
    for name, value in initializers.items():
        assert value.const_value is None
        assert tuple(value.shape or ()) == graph.recipes[name].shape
        assert value.uses()
    assert initializers["model.layers.1.self_attn.q_proj.weight"].dtype == ir.DataType.FLOAT8E4M3FN
    assert initializers["model.embed_tokens.weight"].dtype == ir.DataType.BFLOAT16


def test_each_layer_is_the_same_dozen_of_nodes(graph: RankGraph) -> None:
    layers: dict[str, list[str]] = {}
    for node in graph.model.graph:
        layer = node.metadata_props.get("mm2c.layer")
        if layer is not None:
            assert node.metadata_props["mm2c.module"].startswith(f"model.layers.{layer}")
            layers.setdefault(layer, []).append(node.op_type)
    assert list(layers) == ["0", "1", "2"]
    assert layers["0"] == layers["1"] == layers["2"]
    assert layers["0"] == [
        *["Cast", "RMSNormalization", "M2Fp8Linear", "M2Fp8Linear", "M2Fp8Linear"],
        *["M2QkSumSquares", "Cast", "Cast", "M2Attention", "M2Fp8Linear", "Add"],
        *["Cast", "RMSNormalization", "Reshape", "Cast", "Transpose", "MatMul", "Cast", "M2MoeRouting"],
        *["M2MoeExpertsFp8", "Reshape", "Add"],
    ]


def test_layers_share_only_what_stands_outside_them(graph: RankGraph) -> None:
    for node in graph.model.graph:
        layer = node.metadata_props.get("mm2c.layer")
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if layer is not None and producer is not None and "mm2c.layer" in producer.metadata_props:
                before = int(producer.metadata_props["mm2c.layer"])
                assert before == int(layer) or (before == int(layer) - 1 and producer.op_type == "Add")


def test_every_value_has_a_type_and_a_name_of_its_own(graph: RankGraph) -> None:
    values = [v for node in graph.model.graph for v in node.outputs]
    assert all(v.dtype is not None for v in values)
    assert all(v.shape is not None for v in values if v.dtype != ir.DataType.INT64)
    names = [v.name for v in values]
    assert len(set(names)) == len(names)
    nodes = [node.name for node in graph.model.graph]
    assert len(set(nodes)) == len(nodes)


def test_attributes_of_attention(graph: RankGraph) -> None:
    node = next(n for n in graph.model.graph if n.op_type == "M2Attention")
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes.pop("eps") == pytest.approx(1e-6)
    assert attributes.pop("scale") == pytest.approx(32**-0.5)
    assert attributes == {
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 32,
        "rotary_dim": 16,
        "q_total": 192,
        "k_total": 64,
    }


def test_two_traces_give_the_same_bytes(graph: RankGraph) -> None:
    again = traced(SHAPE, formats(SHAPE, attention=True, experts=True))
    weights = random_weights(graph, SHAPE, 0)
    one, two = (serialised(g, weights).SerializeToString(deterministic=True) for g in (graph, again))
    assert one == two


def test_nothing_of_the_exporter_is_left(graph: RankGraph) -> None:
    text = serialised(graph, random_weights(graph, SHAPE, 0)).SerializeToString()
    for leftover in (b"pkg.torch", b"stack_trace", b"site-packages", b"pytorch"):
        assert leftover not in text


def test_bf16_activations() -> None:
    shape = replace(SHAPE, layers=1)
    kinds = formats(shape, experts=True)
    graph = trace(shape, kinds, BuildOptions(), recipes_for_config(shape, kinds), activation="bf16")
    assert {v.dtype for v in graph.model.graph.inputs[3:]} == {ir.DataType.BFLOAT16}
    routing = next(n for n in graph.model.graph if n.op_type == "M2MoeRouting")
    assert [v.dtype for v in routing.inputs if v is not None] == [ir.DataType.FLOAT] * 2


def test_recipes_that_do_not_fit_are_refused() -> None:
    shape = replace(SHAPE, layers=1)
    kinds = formats(shape)
    recipes = recipes_for_config(shape, kinds)
    missing = {k: v for k, v in recipes.items() if k != "model.norm.weight"}
    with pytest.raises(ValueError, match=r"model\.norm\.weight: no recipe"):
        trace(shape, kinds, BuildOptions(), missing)
    wrong = {
        **recipes,
        "lm_head.weight": Source("lm_head.weight", "f32", (3, 4)),
        "odd": Source("odd", "f32", (1,)),
    }
    with pytest.raises(ValueError, match=r"(?s)odd: the graph has no such tensor.*lm_head\.weight"):
        trace(shape, kinds, BuildOptions(), wrong)


def test_importing_the_stage_imports_no_torch() -> None:
    code = "import mm2c.trace, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
