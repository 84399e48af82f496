"""Segments: one more than collectives, the same on every rank, with nothing but activations between them."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hand_graph import fp8_everywhere, hand_graph, model_config
from lockstep import programs

from mm2c.lower.cut import cut
from mm2c.lower.onnxruntime import LOWERINGS
from mm2c.lower.program import Program

CONFIG = model_config(hidden=128, head_dim=128, intermediate=512, vocab=97)
GRAPH = hand_graph(CONFIG, fp8_everywhere(CONFIG))


def interface(program: Program) -> list[tuple[list[str | None], list[str | None]]]:
    return [([v.name for v in s.graph.inputs], [v.name for v in s.graph.outputs]) for s in program.segments]


@pytest.mark.parametrize("lowering", list(LOWERINGS))
def test_one_rank_is_one_segment(lowering: str) -> None:
    program = cut(LOWERINGS[lowering](GRAPH))
    (segment,) = program.segments
    assert not program.collectives
    assert {v.name for v in segment.graph.inputs} == {v.name for v in GRAPH.model.graph.inputs}
    assert {v.name for v in segment.graph.outputs} == {v.name for v in GRAPH.model.graph.outputs}


@pytest.mark.parametrize("lowering", list(LOWERINGS))
@pytest.mark.parametrize(("tp", "ep"), [(2, 1), (4, 2)])
def test_segments_of_all_ranks_agree(lowering: str, tp: int, ep: int) -> None:
    ranks = programs(GRAPH, CONFIG, tp, ep, LOWERINGS[lowering])
    assert len(ranks[0].segments) == len(ranks[0].collectives) + 1 == 3 * CONFIG.layers + 3
    for program in ranks:
        assert interface(program) == interface(ranks[0])
        assert program.collectives == ranks[0].collectives


@pytest.mark.parametrize("lowering", list(LOWERINGS))
def test_what_travels_between_segments(lowering: str) -> None:
    (program, _) = programs(GRAPH, CONFIG, 2, 1, LOWERINGS[lowering])
    known = {str(v.name) for v in GRAPH.model.graph.inputs}
    segments = [
        ({str(v.name) for v in s.graph.inputs}, {str(v.name) for v in s.graph.outputs})
        for s in program.segments
    ]
    for i, (inputs, outputs) in enumerate(segments):
        assert inputs <= known
        later = set().union(*(following for following, _ in segments[i + 1 :]))
        wanted = later | {v.name for v in GRAPH.model.graph.outputs}
        if i < len(program.collectives):
            wanted.add(program.collectives[i].input)
            known.add(program.collectives[i].output)
        assert outputs <= wanted
        known |= outputs
    for segment in program.segments:  # activations, lengths and caches; never a weight
        assert not {v.name for v in segment.graph.inputs} & set(program.recipes)
        assert all(
            v.const_value is not None or v.name in program.recipes
            for v in segment.graph.initializers.values()
        )


def test_segments_carry_only_the_bodies_they_use() -> None:
    (program, _) = programs(GRAPH, CONFIG, 2, 1, LOWERINGS["portable"])
    for segment in program.segments:
        used = {node.op_type for node in segment.graph if node.domain == "mm2c"}
        assert {name for _, name, _ in segment.functions} == used
    assert "DistCollective" not in {name for s in program.segments for _, name, _ in s.functions}


def test_a_weight_prepared_for_two_segments_is_prepared_in_both() -> None:
    lowered = LOWERINGS["portable"](GRAPH)
    x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(
        name="model.norm.weight", shape=ir.Shape([128]), type=ir.TensorType(ir.DataType.BFLOAT16)
    )
    cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT})
    first = ir.node("Mul", [x, cast.outputs[0]])
    attributes = {"collective_operation": "all_reduce", "groups": [0, 1], "group_size": 2, "axis": -1}
    collective = ir.node("DistCollective", [first.outputs[0]], attributes, domain="mm2c")
    second = ir.node("Mul", [collective.outputs[0], cast.outputs[0]])
    nodes = [cast, first, collective, second]
    for i, node in enumerate(nodes):
        node.outputs[0].name = f"v{i}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    lowered.model = ir.Model(
        ir.Graph([x], second.outputs, nodes=nodes, initializers=[weight], opset_imports={"": 23}),
        ir_version=10,
    )
    program = cut(lowered)
    assert [[n.op_type for n in s.graph] for s in program.segments] == [["Cast", "Mul"], ["Cast", "Mul"]]
    assert interface(program) == [(["x"], ["v1"]), (["v2"], ["v3"])]
