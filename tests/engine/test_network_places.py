"""Layers of the network replay that move values: shapes, slices, gathers, scatters, ranges, reductions."""

from __future__ import annotations

from typing import Any

import networks as nets
import pytest
import torch
from onnx import helper

node = helper.make_node
F32, I64, I32, BOOL, BF16 = torch.float32, torch.int64, torch.int32, torch.bool, torch.bfloat16


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ints(name: str, *values: int) -> Any:
    return nets.constant(name, torch.tensor(values))


@pytest.mark.parametrize("sizes", [(0, -1), (-1,), (4, 0, 1, 3), (2, 3, 4), (0, 0, -1, 1)])
def test_reshape_to_constants(sizes: tuple[int, ...]) -> None:
    x = floats(4, 2, 3) if sizes[:2] == (4, 0) else floats(2, 3, 4)
    nodes = [ints("s", *sizes), node("Reshape", ["x", "s"], ["y"])]
    nets.agree(nets.model_of(nodes, {"x": x}, {"y": F32}), {"x": x})


def test_reshape_to_sizes_that_are_computed() -> None:
    inputs = {"x": floats(2, 3, 4), "like": floats(6, 1)}
    nodes = [node("Shape", ["like"], ["a"], end=1), ints("r", -1), node("Concat", ["a", "r"], ["s"], axis=0)]
    nodes.append(node("Reshape", ["x", "s"], ["y"]))
    nets.agree(nets.model_of(nodes, inputs, {"y": F32}), inputs)


def test_a_zero_that_means_zero() -> None:
    x = floats(0, 3)
    nodes = [ints("s", 3, 0), node("Reshape", ["x", "s"], ["y"], allowzero=1)]
    nets.agree(nets.model_of(nodes, {"x": x}, {"y": F32}), {"x": x})


@pytest.mark.parametrize("perm", [(1, 0, 2), (2, 0, 1), (0, 2, 1)])
def test_transpose(perm: tuple[int, ...]) -> None:
    x = floats(2, 3, 4)
    nets.agree(nets.model_of([node("Transpose", ["x"], ["y"], perm=perm)], {"x": x}, {"y": F32}), {"x": x})


def test_transpositions_before_and_behind_a_reshape_of_one_layer() -> None:
    def build(trt: Any, network: Any) -> None:
        layer = network.add_shuffle(network.add_input("x", trt.float32, (2, 3, 4)))
        layer.first_transpose, layer.reshape_dims, layer.second_transpose = (2, 0, 1), (4, 6), (1, 0)
        network.mark_output(layer.get_output(0))

    x = floats(2, 3, 4)
    (found,) = nets.replay_built(build).run({"x": x}).values()
    assert torch.equal(found, x.permute(2, 0, 1).reshape(4, 6).T)


@pytest.mark.parametrize("axes", [(0,), (-1,), (0, 2), (1, -1)])
def test_unsqueeze_and_squeeze(axes: tuple[int, ...]) -> None:
    x = floats(3, 4)
    nodes = [ints("a", *axes), node("Unsqueeze", ["x", "a"], ["y"]), node("Squeeze", ["y", "a"], ["z"])]
    nets.agree(nets.model_of(nodes, {"x": x}, {"y": F32, "z": F32}), {"x": x})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_and_split(axis: int) -> None:
    inputs = {"x": floats(2, 3, 4), "y": floats(2, 3, 4, seed=1)}
    nodes = [
        node("Concat", ["x", "y"], ["c"], axis=axis),
        node("Split", ["c"], ["a", "b"], axis=axis, num_outputs=2),
    ]
    nets.agree(nets.model_of(nodes, inputs, {"c": F32, "a": F32, "b": F32}), inputs)


@pytest.mark.parametrize(
    ("start", "end", "axes", "steps"),
    [
        ((0,), (2,), (0,), (1,)),
        ((1, -3), (9, -1), (0, 2), (1, 1)),
        ((0,), (99,), (1,), (2,)),
        ((-1,), (-99,), (2,), (-2,)),
    ],
)
def test_slice(
    start: tuple[int, ...], end: tuple[int, ...], axes: tuple[int, ...], steps: tuple[int, ...]
) -> None:
    x = floats(4, 5, 6)
    nodes = [ints("s", *start), ints("e", *end), ints("a", *axes), ints("t", *steps)]
    nodes.append(node("Slice", ["x", "s", "e", "a", "t"], ["y"]))
    nets.agree(nets.model_of(nodes, {"x": x}, {"y": F32}), {"x": x})


def test_slice_from_and_to_what_is_computed() -> None:
    inputs = {"x": floats(5, 6), "n": torch.tensor([2]), "m": torch.tensor([5])}
    nodes = [ints("a", 1), node("Slice", ["x", "n", "m", "a"], ["y"])]
    nets.agree(nets.model_of(nodes, inputs, {"y": F32}, dynamic=False), inputs)


@pytest.mark.parametrize("pads", [(0, 1, 2, 0), (1, -1, 0, 2), (0, 0, 0, 0)])
@pytest.mark.parametrize("value", [None, 2.5])
def test_padding_with_a_value(pads: tuple[int, ...], value: float | None) -> None:
    x = floats(3, 4)
    nodes = [ints("p", *pads)] + ([] if value is None else [nets.constant("v", torch.tensor(value))])
    nodes.append(node("Pad", ["x", "p"] + ([] if value is None else ["v"]), ["y"]))
    nets.agree(nets.model_of(nodes, {"x": x}, {"y": F32}, dynamic=False), {"x": x})


def test_expand() -> None:
    x = floats(3, 1)
    nodes = [ints("s", 2, 1, 4), node("Expand", ["x", "s"], ["y"])]
    nets.agree(nets.model_of(nodes, {"x": x}, {"y": F32}), {"x": x})


@pytest.mark.parametrize("ends", [(0, 7, 1), (3, -4, -2), (5, 5, 1), (2, 9, 3)])
@pytest.mark.parametrize("dtype", [I32, I64])
def test_range(ends: tuple[int, int, int], dtype: torch.dtype) -> None:
    inputs = {name: torch.tensor(end, dtype=dtype) for name, end in zip("abc", ends, strict=True)}
    model = nets.model_of([node("Range", ["a", "b", "c"], ["y"])], inputs, {"y": dtype})
    assert torch.equal(nets.replay_of(model).run(inputs)["y"], nets.runtime(model, inputs)["y"])


@pytest.mark.parametrize(("start", "end"), [(0, None), (1, None), (-2, None), (1, 2), (0, -1)])
def test_shape(start: int, end: int | None) -> None:
    x = floats(2, 3, 4)
    ends = {} if end is None else {"end": end}
    nets.agree(
        nets.model_of([node("Shape", ["x"], ["y"], start=start, **ends)], {"x": x}, {"y": I64}), {"x": x}
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(
    "at", [torch.tensor(1), torch.tensor([0, 2, 2]), torch.tensor([[1], [0]], dtype=I32)]
)
def test_gather(axis: int, at: torch.Tensor) -> None:
    inputs = {"x": floats(3, 4, 5), "at": at}
    nets.agree(nets.model_of([node("Gather", ["x", "at"], ["y"], axis=axis)], inputs, {"y": F32}), inputs)


def test_a_negative_index_counts_from_the_end_of_a_size_that_is_known() -> None:
    from mm2c.verify.network import ReplayError

    inputs = {"x": floats(3, 4), "at": torch.tensor([-1, 0])}
    model = nets.model_of([node("Gather", ["x", "at"], ["y"], axis=1)], inputs, {"y": F32}, dynamic=False)
    assert torch.equal(nets.replay_of(model).run(inputs)["y"], inputs["x"][:, [3, 0]])
    model = nets.model_of([node("Gather", ["x", "at"], ["y"], axis=1)], inputs, {"y": F32})
    with pytest.raises(ReplayError, match="-1"):
        nets.replay_of(model).run(inputs)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis: int) -> None:
    inputs = {
        "x": floats(3, 3, 4),
        "at": torch.randint(0, 3, (3, 3, 4), generator=torch.Generator().manual_seed(0)),
    }
    nets.agree(
        nets.model_of([node("GatherElements", ["x", "at"], ["y"], axis=axis)], inputs, {"y": F32}), inputs
    )


@pytest.mark.parametrize(
    ("batch", "at"),
    [
        (0, [[0, 1], [1, 2]]),
        (0, [[[1]], [[0]]]),
        (1, [[2], [0]]),
        (1, [[[2, 3]], [[0, 1]]]),
        (0, [[1, 0, 3]]),
    ],
)
def test_gather_nd(batch: int, at: list[Any]) -> None:
    inputs = {"x": floats(2, 3, 4), "at": torch.tensor(at)}
    model = nets.model_of(
        [node("GatherND", ["x", "at"], ["y"], batch_dims=batch)], inputs, {"y": F32}, dynamic=False
    )
    nets.agree(model, inputs)


@pytest.mark.parametrize("op", ["Gather", "GatherElements", "GatherND"])
def test_an_index_that_does_not_exist_is_an_error(op: str) -> None:
    from mm2c.verify.network import ReplayError

    inputs = {"x": floats(2, 3), "at": torch.tensor([[1, 3]])}
    with pytest.raises(ReplayError, match="3"):
        nets.replay_of(nets.model_of([node(op, ["x", "at"], ["y"])], inputs, {"y": F32}, dynamic=False)).run(
            inputs
        )


@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_elements(axis: int) -> None:
    inputs = {"x": floats(3, 4), "at": torch.tensor([[0, 2], [1, 0]]), "v": floats(2, 2, seed=1)}
    model = nets.model_of([node("ScatterElements", ["x", "at", "v"], ["y"], axis=axis)], inputs, {"y": F32})
    nets.agree(model, inputs)


@pytest.mark.parametrize("depth", [1, 2])
def test_scatter_nd(depth: int) -> None:
    at = torch.tensor([[0], [2]] if depth == 1 else [[0, 1], [2, 3]])
    inputs = {"x": floats(3, 4, 2), "at": at, "v": floats(*([2, 4, 2] if depth == 1 else [2, 2]), seed=1)}
    model = nets.model_of([node("ScatterND", ["x", "at", "v"], ["y"])], inputs, {"y": F32}, dynamic=False)
    nets.agree(model, inputs)


@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_what_is_written_twice_is_not_a_number(op: str) -> None:
    from mm2c.verify.network import ReplayError

    elements = op == "ScatterElements"
    at = torch.tensor([[1, 1]] if elements else [[1], [1]])
    inputs = {
        "x": floats(1, 3) if elements else floats(3),
        "at": at,
        "v": floats(1, 2) if elements else floats(2),
    }
    attributes = {"axis": 1} if elements else {}
    model = nets.model_of(
        [node(op, ["x", "at", "v"], ["y"], **attributes)], inputs, {"y": F32}, dynamic=False
    )
    assert nets.replay_of(model).run(inputs)["y"].isnan().flatten().tolist() == [False, True, False]
    whole = inputs | {
        "x": torch.zeros_like(inputs["x"], dtype=I64),
        "v": torch.ones_like(inputs["v"], dtype=I64),
    }
    model = nets.model_of([node(op, ["x", "at", "v"], ["y"], **attributes)], whole, {"y": I64}, dynamic=False)
    with pytest.raises(ReplayError, match="twice"):
        nets.replay_of(model).run(whole)


def test_places_that_are_not_zero() -> None:
    def build(trt: Any, network: Any) -> None:
        layer = network.add_non_zero(network.add_input("x", trt.bool, (-1, 3)), trt.int64)
        network.mark_output(layer.get_output(0))

    x = torch.tensor([[True, False, True], [False, False, True]])
    (found,) = nets.replay_built(build).run({"x": x}).values()
    assert found.tolist() == [[0, 0, 1], [0, 2, 2]]


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare"])
@pytest.mark.parametrize(("axes", "keep"), [((1,), 0), ((-1, 0), 1)])
def test_reductions(op: str, axes: tuple[int, ...], keep: int) -> None:
    x = floats(3, 4, 5)
    nodes = [ints("a", *axes), node(op, ["x", "a"], ["y"], keepdims=keep)]
    nets.agree(nets.model_of(nodes, {"x": x}, {"y": F32}), {"x": x}, tolerance=2e-6)


def test_narrow_floats_are_summed_in_f32() -> None:
    x = floats(2, 4096).to(BF16)
    nodes = [ints("a", 1), node("ReduceSum", ["x", "a"], ["y"], keepdims=0)]
    found = nets.replay_of(nets.model_of(nodes, {"x": x}, {"y": BF16})).run({"x": x})["y"]
    torch.testing.assert_close(found, x.double().sum(1).to(BF16), rtol=0.0079, atol=0)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_best_with_the_lower_index_first_among_equals(largest: int, axis: int) -> None:
    x = floats(5, 6).mul(2).round()
    nodes = [ints("k", 3), node("TopK", ["x", "k"], ["v", "i"], axis=axis, largest=largest, sorted=1)]
    nets.agree(nets.model_of(nodes, {"x": x}, {"v": F32, "i": I64}), {"x": x})


def test_a_layer_behind_the_one_that_reads_it() -> None:
    """A network's own order promises nothing: the parser puts the sizes of a Range behind it."""
    inputs = {"n": torch.tensor(4)}
    nodes = [
        nets.constant("z", torch.tensor(0)),
        nets.constant("o", torch.tensor(1)),
        node("Range", ["z", "n", "o"], ["y"]),
    ]
    model = nets.model_of(nodes, inputs, {"y": I64})
    network = nets.parse(model)
    made: dict[str, int] = {}
    late = False
    for index in range(network.network.num_layers):
        layer = network.network.get_layer(index)
        names = [layer.get_input(i).name for i in range(layer.num_inputs)]
        late |= any(name not in made and name != "n" for name in names)
        made |= {layer.get_output(i).name: index for i in range(layer.num_outputs)}
    assert late
    assert nets.replay_of(model).run(inputs)["y"].tolist() == [0, 1, 2, 3]
