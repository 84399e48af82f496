"""Stages of a few layers: equal ones have equal graphs, and put together they are the whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import onnx_ir as ir
import pytest
from hand_graph import hand_graph, model_config

from mm2c.config import BuildOptions, Mapping
from mm2c.graphs_tensorrt import variants
from mm2c.lower.plan_graph import PlanGraph, Sizes, creators_of, plan_graph
from mm2c.lower.program import LoweredRank
from mm2c.lower.rows import lower_rows
from mm2c.lower.stages import StageGraph, cut_stages
from mm2c.lower.widen import widened
from mm2c.passes.edit import PassError
from mm2c.passes.shard import shard
from mm2c_runtime.manifest_tensorrt import Profile, bound_name, plan_name

CONFIG = model_config(layers=5, vocab=522)
SIZES = Sizes(CONFIG.hidden, 32, 0, ("batch", CONFIG.vocab))


@pytest.fixture(scope="module")
def lowered() -> Callable[[int], LoweredRank]:
    whole = hand_graph(CONFIG)
    return lambda rank: named_by_layer(lower_rows(shard(whole, CONFIG, Mapping(2, rank=rank))))


def named_by_layer(rank: LoweredRank) -> LoweredRank:
    """Nodes and values under names that tell their layer, as in a traced graph."""
    layer = None
    counts: Counter[int | None] = Counter()
    for node in rank.model.graph:
        read = [m for v in node.inputs if v is not None and (m := re.search(r"layers\.(\d+)", v.name or ""))]
        layer = max([int(m[1]) for m in read], default=layer)
        if any(v is not None and v.name == "model.norm.weight" for v in node.inputs):
            layer = None
        counts[layer] += 1
        node.name = f"{'end' if layer is None else f'model.layers.{layer}'}/{node.op_type}.{counts[layer]}"
        for i, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{node.name}:{i}"
    return rank


def graph_of(stage: StageGraph) -> PlanGraph:
    return plan_graph(stage, SIZES, "gather", ir.DataType.FLOAT)


def test_every_layer_is_in_one_stage(lowered: Callable[[int], LoweredRank]) -> None:
    rank = lowered(0)
    for size, spans in ((2, [(0, 2), (2, 2), (4, 1)]), (5, [(0, 5)]), (0, [(0, 5)]), (9, [(0, 5)])):
        stages = cut_stages(rank, size)
        assert [(stage.first_layer, stage.layers) for stage in stages] == spans
        named = [name for stage in stages for name in stage.weights if ".layers." in name]
        assert len(named) == len(set(named))
        assert {name for stage in stages for name in stage.weights} == set(rank.recipes)


def test_the_rank_s_graph_is_left_as_it_is(lowered: Callable[[int], LoweredRank]) -> None:
    rank = lowered(0)
    before = ir.to_proto(rank.model).SerializeToString(deterministic=True)
    for stage in cut_stages(rank, 1):
        graph_of(stage)
    assert ir.to_proto(rank.model).SerializeToString(deterministic=True) == before


def test_middle_stages_and_ranks_have_the_same_bytes(lowered: Callable[[int], LoweredRank]) -> None:
    models = [
        [
            graph_of(stage).model.SerializeToString(deterministic=True)
            for stage in cut_stages(lowered(rank), 1)
        ]
        for rank in (0, 1)
    ]
    assert models[0] == models[1]  # the vocabulary's first row is an input
    assert len(set(models[0])) == 3  # first, middle, last


def test_inputs_and_outputs_of_the_stages(lowered: Callable[[int], LoweredRank]) -> None:
    first, middle, last = (
        {tensor.name: tensor for tensor in graph_of(stage).tensors if tensor.kind != "weight"}
        for stage in cut_stages(lowered(1), 2)
    )
    caches = ["k_cache.0", "v_cache.0", "k_cache.1", "v_cache.1"]
    step = ["input_ids", "past_len", "new_len"]
    handed = [name for name in first if name.startswith("hidden_out")]
    out = [name.replace("cache", "cache_out") for name in caches]
    assert list(first) == [*step, *caches, "vocabulary.first", *handed, *out]
    hidden = [name.replace("hidden_out", "hidden") for name in handed]
    assert [n for n in middle if n.startswith("hidden")] == hidden + handed
    assert [n for n in last if n.startswith("hidden")] == hidden
    assert last["logits"].shape == ["batch", CONFIG.vocab]
    assert last["logits"].dtype == "f32"
    assert middle["hidden.0"].shape == ["batch", "seq", CONFIG.hidden]
    assert first["k_cache.1"].shape == first["k_cache_out.1"].shape
    assert first["k_cache.1"].shape[2] == 32  # of the options: TensorRT's cache has a fixed length


def test_names_of_a_plan_and_of_the_model(lowered: Callable[[int], LoweredRank]) -> None:
    for stage in cut_stages(lowered(0), 2):
        first, wanted = stage.first_layer, set(stage.weights)
        tensors = graph_of(stage).tensors
        assert {bound_name(t.name, first) for t in tensors if t.kind == "weight"} == wanted
        for tensor in tensors:
            if tensor.kind in ("weight", "cache"):
                assert plan_name(bound_name(tensor.name, first), first) == tensor.name


@pytest.mark.parametrize(
    ("name", "first", "bound"),
    [
        ("layers.2.mlp.gate.weight", 8, "model.layers.10.mlp.gate.weight"),
        ("k_cache.0", 61, "k_cache.61"),
        ("v_cache_out.7", 16, "v_cache_out.23"),
        ("model.norm.weight", 56, "model.norm.weight"),
        ("rope.cos", 8, "rope.cos"),
        ("hidden.1", 8, "hidden.1"),
    ],
)
def test_bound_names(name: str, first: int, bound: str) -> None:
    assert bound_name(name, first) == bound
    assert plan_name(bound, first) == name


def test_a_stage_that_reads_over_a_gap_is_refused(lowered: Callable[[int], LoweredRank]) -> None:
    rank = lowered(0)
    reader = next(
        n
        for n in rank.model.graph
        if str(n.name).startswith("model.layers.2/") and n.op_type == "M2AddRmsNorm"
    )
    made = next(
        n
        for n in rank.model.graph
        if str(n.name).startswith("model.layers.0/") and n.op_type == "M2AddRmsNorm"
    )
    reader.replace_input_with(1, made.outputs[1])
    with pytest.raises(PassError, match="stage 2 reads what stage 0 made"):
        cut_stages(rank, 1)


def test_plugins_are_named_where_there_are_any(lowered: Callable[[int], LoweredRank]) -> None:
    stage = cut_stages(lowered(0), 0)[0]
    model = graph_of(stage).model
    spaces = {
        node.op_type: attribute.s
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "plugin_namespace"
    }
    assert set(spaces) == creators_of(model)
    assert set(spaces.values()) == {b"mm2c"}
    assert {"M2QkSumSquares", "M2RouterLinear", "M2AddRmsNorm"} <= set(spaces)
    assert not {"M2Attention", "M2DenseLinear", "DistCollective"} & set(spaces)
    functions = [function.name for function in model.functions]
    assert len(functions) == len(set(functions))  # TensorRT tells functions by their name alone
    assert {node.op_type for node in model.graph.node if node.domain} <= set(functions)


def test_a_wide_graph_has_no_bf16(lowered: Callable[[int], LoweredRank]) -> None:
    stage = cut_stages(lowered(0), 2)[1]
    narrow = plan_graph(stage, SIZES, "dense", ir.DataType.BFLOAT16).model
    wide = widened(narrow)
    assert "elem_type: 16" in str(narrow)
    assert "elem_type: 16" not in str(wide)
    assert [n.op_type for n in narrow.graph.node] == [n.op_type for n in wide.graph.node]
    casts = [
        a.i for f in wide.functions for n in f.node for a in n.attribute if a.name in ("to", "output_dtype")
    ]
    assert casts
    assert 16 not in casts
    assert [f.name for f in narrow.functions] == [f.name for f in wide.functions]


def options(engine: str, rows: int) -> BuildOptions:
    return BuildOptions(engine=engine, max_rows=rows, prefill_chunk=256)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 8, 16, 17, 64])
@pytest.mark.parametrize("engine", ["tensorrt-rtx", "tensorrt"])
def test_profiles_cover_every_step(engine: str, rows: int) -> None:
    found = variants(options(engine, rows))
    profiles = [profile for variant in found for profile in variant.profiles]
    for batch, seq in [*((n, 1) for n in range(1, rows + 1)), (1, 2), (1, 255), (1, 256)]:
        assert any(profile.covers(batch, seq) for profile in profiles), (batch, seq)
    assert not any(profile.covers(rows + 1, 1) or profile.covers(1, 257) for profile in profiles)
    forms = {variant.name: variant.form for variant in found}
    assert forms == ({"step": "dense"} if engine == "tensorrt" else {"decode": "gather", "prefill": "dense"})


def test_many_rows_do_not_gather_experts() -> None:
    gather, dense = variants(options("tensorrt-rtx", 40))
    assert [p.batch for p in gather.profiles] == [(1, 16, 16)]
    assert [(p.name, p.batch, p.seq) for p in dense.profiles] == [
        ("decode.many", (17, 40, 40), (1, 1, 1)),
        ("prefill", (1, 1, 1), (1, 256, 256)),
    ]
    assert Profile(name="x", batch=(2, 4, 8), seq=(1, 1, 1)).covers(8, 1)
