"""Gathering along the first axis and turning gives what gathering along the last axis gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from mm2c.lower.gather_first_axis import gather_along_first_axis
from mm2c.lower.program import LoweredRank
from mm2c.passes.edit import PassError


def gathering(axes: int, ranks: int, axis: int = -1) -> LoweredRank:
    """y = all_gather(x) over ``ranks`` ranks, x of ``axes`` symbolic axes and a last one of 5."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape([f"d{i}" for i in range(axes)] + [5]), type=kind)
    node = ir.node(
        "DistCollective",
        [x],
        {
            "collective_operation": "all_gather",
            "reduce_op": "sum",
            "root": -1,
            "nb_rank": ranks,
            "groups": list(range(ranks)),
            "group_size": ranks,
            "axis": axis,
        },
        domain="mm2c",
        name="gather",
    )
    node.outputs[0].name, node.outputs[0].type = "y", kind
    graph = ir.Graph([x], list(node.outputs), nodes=[node], opset_imports={"": 24, "mm2c": 1}, name="g")
    return LoweredRank(ir.Model(graph, ir_version=11), {}, in_place=True, padded=True)


@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (2, 3, 5)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_same_as_along_the_last_axis(shape: tuple[int, ...], ranks: int) -> None:
    rank = gathering(len(shape) - 1, ranks)
    gather_along_first_axis(rank, len(shape))
    (node,) = [n for n in rank.model.graph if n.op_type == "DistCollective"]
    assert node.attributes["axis"].as_int() == 0
    rows = ir.Value(name="rows", type=node.outputs[0].type)  # what the ranks' messages give
    node.outputs[0].replace_all_uses_with(rows)
    rank.model.graph.inputs.append(rows)
    rank.model.graph.remove(node, safe=True)
    parts = [np.random.default_rng(i).normal(size=shape).astype(np.float32) for i in range(ranks)]
    session = onnxruntime.InferenceSession(
        ir.to_proto(rank.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds: dict[str, Any] = {"x": parts[0], "rows": np.concatenate(parts, 0)}
    (found,) = session.run(None, feeds)
    np.testing.assert_array_equal(found, np.concatenate(parts, -1))


def test_other_axes_are_refused() -> None:
    with pytest.raises(PassError, match="axis 0"):
        gather_along_first_axis(gathering(1, 2, axis=0), 2)
