"""Layers of the network replay that look at one element at a time, against ONNX Runtime and torch."""

from __future__ import annotations

from typing import Any

import networks as nets
import pytest
import torch
from onnx import TensorProto, helper

node = helper.make_node
F32, I64, I32, BOOL, BF16 = torch.float32, torch.int64, torch.int32, torch.bool, torch.bfloat16


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Min", "Max"])
def test_arithmetic_of_floats_with_repeated_axes(op: str) -> None:
    x, y = floats(2, 1, 5), floats(3, 1, seed=1)
    nets.agree(nets.model_of([node(op, ["x", "y"], ["z"])], {"x": x, "y": y}, {"z": F32}), {"x": x, "y": y})


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Min", "Max"])
@pytest.mark.parametrize("dtype", [I32, I64])
def test_arithmetic_of_integers_divides_towards_zero(op: str, dtype: torch.dtype) -> None:
    inputs = {
        "x": torch.tensor([[-7, 7, -8, 1]], dtype=dtype),
        "y": torch.tensor([[2, -2, 3, 5]], dtype=dtype),
    }
    nets.agree(nets.model_of([node(op, ["x", "y"], ["z"])], inputs, {"z": dtype}), inputs)


def test_mod_takes_the_sign_of_the_divisor() -> None:
    inputs = {"x": torch.tensor([-7, 7, -8, 8]), "y": torch.tensor([3, -3, 3, 3])}
    found = nets.agree(nets.model_of([node("Mod", ["x", "y"], ["z"])], inputs, {"z": I64}), inputs)
    assert found["z"].tolist() == [2, -2, 1, 2]


def test_powers() -> None:
    inputs = {"x": floats(3, 4).abs() + 0.1, "y": floats(3, 4, seed=2)}
    nets.agree(nets.model_of([node("Pow", ["x", "y"], ["z"])], inputs, {"z": F32}), inputs)


@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
@pytest.mark.parametrize("dtype", [F32, I64])
def test_comparisons(op: str, dtype: torch.dtype) -> None:
    inputs = {"x": torch.tensor([1, 2, 3], dtype=dtype), "y": torch.tensor([[2], [3]], dtype=dtype)}
    nets.agree(nets.model_of([node(op, ["x", "y"], ["z"])], inputs, {"z": BOOL}), inputs)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(op: str) -> None:
    inputs = {"x": torch.tensor([True, True, False, False]), "y": torch.tensor([True, False, True, False])}
    nodes = [node(op, ["x", "y"], ["z"]), node("Not", ["z"], ["n"])]
    nets.agree(nets.model_of(nodes, inputs, {"z": BOOL, "n": BOOL}), inputs)


@pytest.mark.parametrize(
    "op",
    [
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Abs",
        "Neg",
        "Sin",
        "Cos",
        "Erf",
        "Ceil",
        "Floor",
        "Sigmoid",
        "Tanh",
        "Relu",
    ],
)
def test_functions_of_one_value(op: str) -> None:
    inputs = {"x": floats(4, 9).abs() + 0.05 if op in ("Log", "Sqrt", "Reciprocal") else floats(4, 9)}
    nets.agree(nets.model_of([node(op, ["x"], ["y"])], inputs, {"y": F32}), inputs, tolerance=2e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis: int) -> None:
    inputs = {"x": floats(3, 4, 5)}
    nets.agree(nets.model_of([node("Softmax", ["x"], ["y"], axis=axis)], inputs, {"y": F32}), inputs)


@pytest.mark.parametrize("dtype", [F32, I64])
def test_where(dtype: torch.dtype) -> None:
    inputs = {
        "c": torch.tensor([[True, False, True]]),
        "x": floats(2, 3).mul(3).to(dtype),
        "y": torch.zeros(1, dtype=dtype),
    }
    nets.agree(nets.model_of([node("Where", ["c", "x", "y"], ["z"])], inputs, {"z": dtype}), inputs)


@pytest.mark.parametrize(
    ("source", "target"),
    [(F32, I64), (F32, I32), (I64, F32), (I64, I32), (I32, I64), (BOOL, F32), (I64, BOOL), (F32, BOOL)],
)
def test_conversions(source: torch.dtype, target: torch.dtype) -> None:
    inputs = {"x": torch.tensor([-2.7, -1.0, 0.0, 0.4, 3.9]).to(source)}
    nets.agree(
        nets.model_of([node("Cast", ["x"], ["y"], to=nets.TYPES[target])], inputs, {"y": target}), inputs
    )


def test_a_conversion_that_the_type_cannot_hold_is_an_error() -> None:
    from mm2c.verify.network import ReplayError

    inputs = {"x": torch.tensor([1, 1 << 40])}
    model = nets.model_of([node("Cast", ["x"], ["y"], to=TensorProto.INT32)], inputs, {"y": I32})
    with pytest.raises(ReplayError, match="1099511627776"):
        nets.replay_of(model).run(inputs)


def test_e4m3_takes_the_nearest_and_448_beyond_it() -> None:
    inputs = {"x": torch.tensor([0.3, 1.06, 447.0, 1000.0, -1000.0, float("inf")])}
    nodes = [
        node("Cast", ["x"], ["y"], to=TensorProto.FLOAT8E4M3FN),
        node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    model = nets.model_of(nodes, inputs, {"z": F32})
    found = nets.replay_of(model).run(inputs)["z"]
    assert found.tolist() == nets.runtime(model, inputs)["z"].tolist()
    assert found.tolist()[2:] == [448.0, 448.0, -448.0, 448.0]


def test_declared_precision_rounds_every_layer_and_wide_none() -> None:
    x, y = floats(64).to(BF16), floats(64, seed=1).to(BF16)
    nodes = [node("Mul", ["x", "y"], ["p"]), node("Sub", ["p", "x"], ["d"]), node("Sigmoid", ["d"], ["z"])]
    replay = nets.replay_of(nets.model_of(nodes, {"x": x, "y": y}, {"z": BF16}))
    exact = torch.sigmoid(x.double() * y.double() - x.double())
    rounded = torch.sigmoid((x * y - x).float()).to(BF16)
    assert torch.equal(replay.run({"x": x, "y": y})["z"], rounded)
    wide = replay.run({"x": x, "y": y}, "wide")["z"]
    assert wide.dtype == F32
    assert float((wide - exact).abs().max()) < 1e-6
    assert torch.equal(replay.run({"x": x.float(), "y": y.float()}, "wide")["z"], wide)


def test_floor_division_of_the_network_interface() -> None:
    def build(trt: Any, network: Any) -> None:
        x, y = (network.add_input(name, trt.int64, (-1,)) for name in "xy")
        layer = network.add_elementwise(x, y, trt.ElementWiseOperation.FLOOR_DIV)
        network.mark_output(layer.get_output(0))

    replay = nets.replay_built(build)
    (name,) = replay.outputs
    found = replay.run({"x": torch.tensor([-7, 7, -8]), "y": torch.tensor([2, 2, 4])})[name]
    assert found.tolist() == [-4, 3, -2]


def test_constants_of_every_type_that_can_be_read() -> None:
    nodes, outputs = [], {}
    for name, value in {
        "f": floats(2, 3),
        "i": torch.tensor([1, -2]),
        "s": torch.tensor(4),
        "b": torch.tensor([True, False]),
    }.items():
        nodes += [nets.constant(f"{name}_c", value), node("Identity", [f"{name}_c"], [name])]
        outputs[name] = value.dtype
    inputs = {"x": floats(2)}
    nodes.append(node("Identity", ["x"], ["y"]))
    nets.agree(nets.model_of(nodes, inputs, outputs | {"y": F32}), inputs)


def test_what_is_fed_must_be_what_the_network_declares() -> None:
    from mm2c.verify.network import ReplayError

    x = floats(2, 3)
    replay = nets.replay_of(nets.model_of([node("Exp", ["x"], ["y"])], {"x": x}, {"y": F32}, dynamic=False))
    for feeds, message in (({}, "not fed"), ({"x": x.double()}, "float64"), ({"x": x.T}, r"\[3, 2\]")):
        with pytest.raises(ReplayError, match=message):
            replay.run(feeds)
