"""A plan's wide graph on ONNX Runtime: cut at collectives, ranks in lockstep, weights as inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mm2c.verify.network_session import Joint, WideGraph, join, run_lockstep
from mm2c_runtime.errors import BundleError

GATHER = dict(collective_operation="all_gather", reduce_op="none", root=-1, nb_rank=2, axis=0)
REDUCE = {**GATHER, "collective_operation": "all_reduce", "reduce_op": "sum"}


def collective(source: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        "DistCollective", [source], [target], target, domain="mm2c", groups=[0, 1], group_size=2, **attributes
    )


def graph(*nodes: onnx.NodeProto, watched: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """x f32[n], w e4m3[4]: a function of the weight in another function, as plans have them."""
    inner = helper.make_function(
        "mm2c", "Widen", ["w"], ["y"], [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)],
        [helper.make_opsetid("", 23)],
    )  # fmt: skip
    outer = helper.make_function(
        "mm2c", "Scale", ["x", "w"], ["y"],
        [helper.make_node("Widen", ["w"], ["wide"], domain="mm2c"), helper.make_node("Mul", ["x", "wide"], ["y"])],
        [helper.make_opsetid("", 23), helper.make_opsetid("mm2c", 1)],
    )  # fmt: skip
    identity = helper.make_function(
        "mm2c", "DistCollective", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_opsetid("", 23)], [*REDUCE, "groups", "group_size"],
    )  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT8E4M3FN, [4]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in watched]
    body = helper.make_graph(
        list(nodes), "g", inputs, outputs, [numpy_helper.from_array(np.float32([1, 1, 1, 1]), "one")]
    )
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("mm2c", 1)], ir_version=11
    )
    model.functions.extend([outer, inner, identity])
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "wide.onnx"
    onnx.save(model, str(path))
    return path


def feeds(rank: int) -> dict[str, ort.OrtValue]:
    codes = np.full(4, 0x38 + 8 * rank, np.uint8)  # 1.0, 2.0 in e4m3
    return {
        "x": ort.OrtValue.ortvalue_from_numpy(np.arange(4, dtype=np.float32)),
        "w": ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, TensorProto.FLOAT8E4M3FN),
    }


def run(model: onnx.ModelProto, folder: Path, watched: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    wide = WideGraph(saved(model, folder), watched)
    return run_lockstep([wide.steps(feeds(rank)) for rank in range(2)], join)


SCALE = helper.make_node("Scale", ["x", "w"], ["scaled"], domain="mm2c")


def test_ranks_sum_and_gather(tmp_path: Path) -> None:
    model = graph(
        SCALE,
        collective("scaled", "sum", **REDUCE),
        helper.make_node("Add", ["sum", "one"], ["more"]),
        collective("more", "both", **GATHER),
        helper.make_node("Add", ["both", "both"], ["y"]),
        watched=("y", "sum"),
    )
    first, second = run(model, tmp_path, watched=("scaled",))
    assert set(first) == {"y", "sum", "scaled"}
    np.testing.assert_array_equal(first["scaled"], np.arange(4))
    np.testing.assert_array_equal(second["scaled"], 2 * np.arange(4))
    np.testing.assert_array_equal(first["sum"], 3 * np.arange(4))
    np.testing.assert_array_equal(first["y"], np.tile(2 * (3 * np.arange(4) + 1), 2))
    np.testing.assert_array_equal(first["y"], second["y"])


def test_collectives_with_nothing_between_them(tmp_path: Path) -> None:
    """What is summed is an input of the graph, and what is gathered an output of the sum."""
    model = graph(collective("x", "sum", **REDUCE), collective("sum", "y", **GATHER))
    first, second = run(model, tmp_path)
    np.testing.assert_array_equal(first["y"], np.tile(2 * np.arange(4), 2))
    np.testing.assert_array_equal(first["y"], second["y"])


def test_one_graph_runs_again_with_other_tensors(tmp_path: Path) -> None:
    wide = WideGraph(saved(graph(SCALE, helper.make_node("Neg", ["scaled"], ["y"])), tmp_path))
    for rank in (0, 1, 0):
        (found,) = run_lockstep([wide.steps(feeds(rank))], join)
        np.testing.assert_array_equal(found["y"], -(1 + rank) * np.arange(4))


def test_ranks_that_do_not_meet_are_refused(tmp_path: Path) -> None:
    one = WideGraph(saved(graph(collective("x", "y", **REDUCE)), tmp_path))
    other = WideGraph(saved(graph(helper.make_node("Neg", ["x"], ["y"])), tmp_path))
    with pytest.raises(BundleError, match="some ranks have ended"):
        run_lockstep([one.steps(feeds(0)), other.steps(feeds(1))], join)
    third = WideGraph(saved(graph(collective("x", "y", **GATHER)), tmp_path))
    with pytest.raises(BundleError, match="different collectives"):
        run_lockstep([one.steps(feeds(0)), third.steps(feeds(1))], join)


def test_groups_exchange_among_themselves() -> None:
    calls = [Joint("n", "all_reduce", ((0, 2), (1, 3)), 0, np.float32([rank])) for rank in range(4)]
    assert [float(x[0]) for x in join(calls)] == [2, 4, 2, 4]


@pytest.mark.parametrize("change", [dict(collective_operation="reduce_scatter"), dict(reduce_op="max")])
def test_a_collective_that_is_not_known_is_refused(change: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="of the kind"):
        run(graph(collective("x", "y", **{**REDUCE, **change})), tmp_path)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wide.onnx").write_bytes(b"\xff\xff")
    with pytest.raises(BundleError, match="cannot be read"):
        WideGraph(tmp_path / "wide.onnx")


def test_a_graph_that_onnx_runtime_refuses(tmp_path: Path) -> None:
    model = graph(helper.make_node("MatMul", ["x", "w"], ["y"]))
    with pytest.raises(BundleError, match=r"ONNX Runtime .* cannot load part 0"):
        run(model, tmp_path)


def test_values_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = graph(SCALE, helper.make_node("Neg", ["scaled"], ["y"]))
    wide = WideGraph(saved(model, tmp_path))
    wrong = {**feeds(0), "x": ort.OrtValue.ortvalue_from_numpy(np.zeros(3, np.float32))}
    with pytest.raises(BundleError, match="cannot run part 0"):
        run_lockstep([wide.steps(wrong)], join)
