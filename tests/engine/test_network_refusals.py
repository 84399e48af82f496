"""What the network replay does not evaluate exactly it refuses, before anything is computed, and says which node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks as nets
import pytest
import torch
from onnx import NodeProto, TensorProto, helper

node = helper.make_node
F32, I64, BF16 = torch.float32, torch.int64, torch.bfloat16


def ints(name: str, *values: int) -> NodeProto:
    return nets.constant(name, torch.tensor(values))


X = {"x": torch.zeros(2, 3, 4)}
TURN = node("Einsum", ["x", "z"], ["y"], name="n", equation="ij,jk->ik")
NORM = node("InstanceNormalization", ["x", "s", "s"], ["y"], name="n")
TWICE = nets.constant("s", torch.tensor([1.0, 1.0, 2.0, 2.0]))
IMAGE = {"x": torch.zeros(1, 2, 8, 8), "w": torch.zeros(3, 2, 3, 3)}


@pytest.mark.parametrize(
    ("kind", "inputs", "nodes"),
    [
        ("CONVOLUTION", IMAGE, [node("Conv", ["x", "w"], ["y"], name="n")]),
        ("POOLING", {"x": IMAGE["x"]}, [node("MaxPool", ["x"], ["y"], name="n", kernel_shape=[2, 2])]),
        ("CUMULATIVE", X, [nets.constant("a", torch.tensor(1)), node("CumSum", ["x", "a"], ["y"], name="n")]),
        ("EINSUM", {"x": torch.zeros(3, 4), "z": torch.zeros(4, 5)}, [TURN]),
        ("SLICE", X, [ints("r", 1, 2, 1), node("Tile", ["x", "r"], ["y"], name="n")]),
        ("SLICE", X, [ints("p", 0, 0, 1, 0, 0, 1), node("Pad", ["x", "p"], ["y"], name="n", mode="edge")]),
        ("SLICE", X, [ints("p", 0, 0, 1, 0, 0, 1), node("Pad", ["x", "p"], ["y"], name="n", mode="reflect")]),
        ("ACTIVATION", X, [node("LeakyRelu", ["x"], ["y"], name="n")]),
        ("UNARY", X, [node("Round", ["x"], ["y"], name="n")]),
        ("REDUCE", X, [ints("a", 1), node("ReduceProd", ["x", "a"], ["y"], name="n")]),
        ("NORMALIZATION", X, [nets.constant("s", torch.ones(3)), NORM]),
        ("RESIZE", {"x": IMAGE["x"]}, [TWICE, node("Resize", ["x", "", "s"], ["y"], name="n")]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_kinds_and_modes(kind: str, inputs: dict[str, torch.Tensor], nodes: list[NodeProto]) -> None:
    from mm2c.verify.network import UnknownLayer

    model = nets.model_of(nodes, inputs, {"y": F32}, dynamic=False)
    with pytest.raises(UnknownLayer) as refused:
        nets.replay_of(model)
    assert refused.value.kind == kind
    assert refused.value.origin == "n"
    assert refused.value.name in str(refused.value)


def test_a_branch() -> None:
    from mm2c.verify.network import UnknownLayer

    def branch(op: str) -> Any:
        made = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
        return helper.make_graph([node(op, ["x"], ["r"], name=op)], op, [], [made])

    inputs = {"c": torch.tensor(True), "x": torch.zeros(3)}
    choose = node("If", ["c"], ["y"], name="n", then_branch=branch("Exp"), else_branch=branch("Neg"))
    with pytest.raises(UnknownLayer) as refused:
        nets.replay_of(nets.model_of([choose], inputs, {"y": F32}, dynamic=False))
    assert refused.value.kind in ("CONDITION", "CONDITIONAL_INPUT", "CONDITIONAL_OUTPUT")


def test_a_node_inside_functions_is_named_with_them() -> None:
    from mm2c.verify.network import UnknownLayer

    body = helper.make_function(
        "d", "Outer", ["x"], ["y"], [node("Round", ["x"], ["y"], name="inner")], [helper.make_opsetid("", 24)]
    )
    model = nets.model_of(
        [node("Outer", ["x"], ["y"], name="layer7", domain="d")], X, {"y": F32}, functions=[body]
    )
    with pytest.raises(UnknownLayer, match=r"inner \| layer7 \(Outer\)"):
        nets.replay_of(model)


def test_a_constant_that_the_binding_cannot_read() -> None:
    from onnx import numpy_helper

    from mm2c.verify.network import UnknownLayer

    ml_dtypes = pytest.importorskip("ml_dtypes")
    import numpy as np

    value = numpy_helper.from_array(np.array([1.5], ml_dtypes.bfloat16), "c")
    nodes = [node("Constant", [], ["c"], value=value), node("Add", ["x", "c"], ["y"])]
    with pytest.raises(UnknownLayer, match="a constant of BF16"):
        nets.replay_of(nets.model_of(nodes, {"x": torch.zeros(2, dtype=BF16)}, {"y": BF16}))


def static_fill(trt: Any, network: Any) -> None:
    layer = network.add_fill((4,), trt.FillOperation.LINSPACE, trt.int64)
    network.mark_output(layer.get_output(0))


def random_fill(trt: Any, network: Any) -> None:
    layer = network.add_fill((4,), trt.FillOperation.RANDOM_UNIFORM, trt.float32)
    network.mark_output(layer.get_output(0))


def zero_point(trt: Any, network: Any) -> None:
    x = network.add_input("x", trt.int8, (4, 4))
    scale, zero = network.add_input("s", trt.float32, ()), network.add_input("z", trt.int8, ())
    layer = network.add_dequantize(x, scale, trt.float32)
    layer.set_input(2, zero)
    network.mark_output(layer.get_output(0))


def wrapped_slice(trt: Any, network: Any) -> None:
    layer = network.add_slice(network.add_input("x", trt.float32, (4,)), (2,), (6,), (1,))
    layer.mode = trt.SampleMode.WRAP
    network.mark_output(layer.get_output(0))


def packed_update(trt: Any, network: Any) -> None:
    cache, update = (
        network.add_input("c", trt.float32, (2, 3, 6, 4)),
        network.add_input("u", trt.float32, (4, 3, 4)),
    )
    layer = network.add_kv_cache_update(
        cache, update, network.add_input("at", trt.int32, (2,)), trt.KVCacheMode.LINEAR
    )
    layer.update_form = trt.AttentionIOForm.PACKED_NHD
    layer.update_lengths = network.add_input("n", trt.int32, (3,))
    network.mark_output(layer.get_output(0))


def many_ranks(trt: Any, network: Any) -> None:
    q, k, v = (network.add_input(name, trt.float32, (1, 2, 3, 8)) for name in "qkv")
    made = network.add_attention_v2(q, k, v, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE)
    made.num_ranks = 2
    network.mark_output(made.get_output(0))


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (static_fill, "alpha and beta as attributes"),
        (random_fill, "RANDOM_UNIFORM"),
        (zero_point, "input 2"),
        (wrapped_slice, "WRAP"),
        (packed_update, "input 3"),
        (many_ranks, "2 ranks"),
    ],
)
def test_modes_of_the_network_interface(build: Callable[[Any, Any], None], why: str) -> None:
    from mm2c.verify.network import UnknownLayer

    with pytest.raises(UnknownLayer, match=why):
        nets.replay_built(build)


def test_every_kind_that_is_known_has_its_interface() -> None:
    trt = nets.rtx()
    from mm2c.verify.network.layers import LAYERS

    for kind, entry in LAYERS.items():
        assert hasattr(trt.LayerType, kind)
        assert issubclass(getattr(trt, entry.interface), trt.ILayer)
        assert all(hasattr(getattr(trt, entry.interface), name) for name in entry.attributes)


def test_an_attribute_of_a_later_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """It might change what the layer means."""
    from mm2c.verify.network import UnknownLayer
    from mm2c.verify.network.layers import registry

    entry = registry.LAYERS["UNARY"]._replace(attributes=frozenset())
    monkeypatch.setitem(registry.LAYERS, "UNARY", entry)
    with pytest.raises(UnknownLayer, match=r"IUnaryLayer has \['op'\] in this version"):
        nets.replay_of(nets.model_of([node("Exp", ["x"], ["y"])], X, {"y": F32}))


def test_what_is_evaluated_is_what_the_network_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluator that is wrong about sizes or types is found by TensorRT's own inference."""
    from mm2c.verify.network import ReplayError
    from mm2c.verify.network.layers import registry

    model = nets.model_of([node("Exp", ["x"], ["y"])], X, {"y": F32}, dynamic=False)
    for wrong in (lambda x: x[:1], lambda x: x.double()):

        def read(view: Any, wrong: Any = wrong) -> Any:
            return lambda precision, given: (wrong(given[0]),)

        entry = registry.LAYERS["UNARY"]._replace(read=read)
        monkeypatch.setitem(registry.LAYERS, "UNARY", entry)
        with pytest.raises(ReplayError, match=r"declared as FLOAT \[2, 3, 4\]"):
            nets.replay_of(model).run(X)
