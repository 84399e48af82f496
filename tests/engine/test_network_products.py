"""Matrix products and dequantisation of the network replay."""

from __future__ import annotations

from typing import Any

import networks as nets
import pytest
import torch
from onnx import TensorProto, helper

node = helper.make_node
F32, BF16, E4M3 = torch.float32, torch.bfloat16, torch.float8_e4m3fn


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 1, 3, 4), (1, 5, 4, 2)),
        ((3, 4), (2, 4, 5)),
        ((2, 3, 4), (2, 4, 1)),
    ],
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    inputs = {"a": floats(*a), "b": floats(*b, seed=1)}
    nets.agree(nets.model_of([node("MatMul", ["a", "b"], ["y"])], inputs, {"y": F32}), inputs, tolerance=2e-6)


@pytest.mark.parametrize("a_turned", [0, 1])
@pytest.mark.parametrize("b_turned", [0, 1])
def test_gemm(a_turned: int, b_turned: int) -> None:
    inputs = {
        "a": floats(4, 3) if a_turned else floats(3, 4),
        "b": floats(5, 4, seed=1) if b_turned else floats(4, 5, seed=1),
        "c": floats(5, seed=2),
    }
    gemm = node("Gemm", ["a", "b", "c"], ["y"], transA=a_turned, transB=b_turned, alpha=0.5, beta=2.0)
    nets.agree(nets.model_of([gemm], inputs, {"y": F32}), inputs, tolerance=2e-6)


@pytest.mark.parametrize(
    ("a", "b"), [((7, 300), (300, 9)), ((2, 9, 300), (2, 300, 4)), ((1, 3, 300), (4, 300, 5))]
)
def test_narrow_products_are_summed_in_f32_and_rounded_once(
    a: tuple[int, ...], b: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm2c.verify.network.layers import product

    monkeypatch.setattr(product, "_PIECE", 1000)  # pieces of some columns
    x, y = floats(*a).to(BF16), floats(*b, seed=1).to(BF16)
    inputs = {"a": x, "b": y}
    replay = nets.replay_of(nets.model_of([node("MatMul", ["a", "b"], ["y"])], inputs, {"y": BF16}))
    exact = torch.matmul(x.double(), y.double())
    found = replay.run(inputs)["y"]
    assert float((found.double() - exact).abs().max() / exact.abs().max()) <= 2**-8 * 1.01
    assert (
        float((found != exact.to(BF16)).float().mean()) < 0.01
    )  # but for sums next to the middle of two bf16
    wide = replay.run(inputs, "wide")["y"]
    torch.testing.assert_close(wide.double(), exact, rtol=1e-5, atol=1e-4)


def blocks(scale: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    for axis, size in enumerate(shape):
        scale = scale.repeat_interleave(size // scale.shape[axis], axis)
    return scale


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((256, 384), (2, 3)), ((192, 128), (3, 1)), ((4, 256, 128), (4, 2, 1)), ((2, 128, 256), (2, 1, 2))],
)
def test_block_dequantisation(shape: tuple[int, ...], scales: tuple[int, ...]) -> None:
    """The node that the native graphs use; scales are inputs."""
    w, s = floats(*shape).mul(50).to(E4M3), floats(*scales, seed=1).abs() + 0.01
    sides = [n // m for n, m in zip(shape, scales, strict=True)]
    kind = TensorProto.BFLOAT16
    dequantize = node(
        "TRT_BlockDequantize", ["w", "s"], ["y"], domain="mm2c", block_shape=sides, output_dtype=kind
    )
    model = nets.model_of([dequantize], {"w": w, "s": s}, {"y": BF16}, dynamic=False)
    exact = w.float() * blocks(s, shape)
    replay = nets.replay_of(model)
    assert torch.equal(replay.run({"w": w, "s": s})["y"], exact.to(BF16))
    assert torch.equal(replay.run({"w": w, "s": s}, "wide")["y"], exact)


@pytest.mark.parametrize(("dtype", "scale"), [(E4M3, ()), (E4M3, (4,)), (torch.int8, ()), (torch.int8, (4,))])
def test_dequantize_linear(dtype: torch.dtype, scale: tuple[int, ...]) -> None:
    x, s = floats(4, 6).mul(20).to(dtype), floats(*scale, seed=1).abs() + 0.1
    nodes = [nets.constant("s", s), node("DequantizeLinear", ["x", "s"], ["y"], axis=0)]
    model = nets.model_of(nodes, {"x": x}, {"y": F32}, dynamic=False)
    expected = x.float() * (s.reshape(-1, 1) if scale else s)
    assert torch.equal(nets.replay_of(model).run({"x": x})["y"], expected)


def test_scales_that_do_not_fit_are_an_error() -> None:
    from mm2c.verify.network.errors import ReplayError
    from mm2c.verify.network.layers.quantization import dequantize
    from mm2c.verify.network.view import LayerView, TensorFacts

    class Layer:
        axis = -1
        block_shape = (64, 128)
        to_type = type("Kind", (), {"name": "FLOAT"})

    facts = (TensorFacts("w", "FP8", (128, 128)), TensorFacts("s", "FLOAT", (-1, -1)))
    view = LayerView(
        None, Layer(), "d", "DEQUANTIZE", "", facts, (TensorFacts("y", "FLOAT", (128, 128)),), {}
    )
    evaluate = dequantize(view)
    w = torch.ones(128, 128).to(E4M3)
    assert evaluate("declared", [w, torch.full((2, 1), 2.0)])[0].eq(2).all()
    with pytest.raises(ReplayError, match="blocks"):
        evaluate("declared", [w, torch.ones(1, 1)])


def test_operands_of_the_network_interface() -> None:
    """Transposed operands, and vectors, which are refused."""
    from mm2c.verify.network import UnknownLayer

    def build(ops: tuple[str, str], ranks: tuple[int, int]) -> Any:
        def write(trt: Any, network: Any) -> None:
            a, b = (
                network.add_input(n, trt.float32, (-1,) * rank) for n, rank in zip("ab", ranks, strict=True)
            )
            kinds = [getattr(trt.MatrixOperation, op) for op in ops]
            network.mark_output(network.add_matrix_multiply(a, kinds[0], b, kinds[1]).get_output(0))

        return write

    a, b = floats(5, 3), floats(4, 5, seed=1)
    (found,) = nets.replay_built(build(("TRANSPOSE", "TRANSPOSE"), (2, 2))).run({"a": a, "b": b}).values()
    torch.testing.assert_close(found, a.T @ b.T)
    with pytest.raises(UnknownLayer, match="VECTOR"):
        nets.replay_built(build(("NONE", "VECTOR"), (2, 1)))
