"""Attention, rotary embedding and the linear cache of the network replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks as nets
import pytest
import torch
from onnx import helper

node = helper.make_node
F32, I64, I32, BF16 = torch.float32, torch.int64, torch.int32, torch.bfloat16


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heads(steps: int = 3, length: int = 5, q_heads: int = 4, kv_heads: int = 2) -> dict[str, torch.Tensor]:
    return {
        "q": floats(2, q_heads, steps, 8),
        "k": floats(2, kv_heads, length, 8, seed=1),
        "v": floats(2, kv_heads, length, 8, seed=2),
    }


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, 0.2])
def test_attention_of_grouped_heads(kv_heads: int, scale: float | None) -> None:
    inputs = heads(kv_heads=kv_heads)
    scales = {} if scale is None else {"scale": scale}
    model = nets.model_of(
        [node("Attention", list(inputs), ["y"], **scales)], inputs, {"y": F32}, dynamic=False
    )
    nets.agree(model, inputs, tolerance=2e-6)


@pytest.mark.parametrize("shape", [(1, 1, 3, 5), (2, 1, 3, 5), (2, 4, 3, 5)])
@pytest.mark.parametrize("added", [False, True])
def test_attention_with_a_mask(shape: tuple[int, ...], added: bool) -> None:
    mask = floats(*shape, seed=3) if added else floats(*shape, seed=3) > 0
    if not added:
        mask[..., 0] = True
    inputs = heads() | {"m": mask}
    model = nets.model_of([node("Attention", list(inputs), ["y"])], inputs, {"y": F32}, dynamic=False)
    nets.agree(model, inputs, tolerance=2e-6)


def test_attention_that_looks_back_from_the_upper_left() -> None:
    inputs = heads(steps=5)
    model = nets.model_of(
        [node("Attention", list(inputs), ["y"], is_causal=1)], inputs, {"y": F32}, dynamic=False
    )
    nets.agree(model, inputs, tolerance=2e-6)


def attention(
    kind: str = "NONE", change: Callable[[Any, Any, Any], None] | None = None
) -> Callable[[Any, Any], None]:
    """An IAttention of the network interface, changed by ``change(trt, network, attention)``."""

    def build(trt: Any, network: Any) -> None:
        q = network.add_input("q", trt.float32, (2, 4, 3, 8))
        k, v = (network.add_input(name, trt.float32, (2, 2, 5, 8)) for name in "kv")
        softmax, causal = trt.AttentionNormalizationOp.SOFTMAX, getattr(trt.CausalMaskKind, kind)
        made = network.add_attention_v2(q, k, v, softmax, causal)
        if change is not None:
            change(trt, network, made)
        network.mark_output(made.get_output(0))

    return build


@pytest.mark.parametrize(("kind", "shift"), [("NONE", 9), ("UPPER_LEFT", 0), ("LOWER_RIGHT", 2)])
def test_attention_of_the_network_interface_has_no_scale(kind: str, shift: int) -> None:
    inputs = heads()
    (found,) = nets.replay_built(attention(kind)).run(inputs).values()
    seen = torch.arange(5) <= torch.arange(3)[:, None] + shift
    expected = torch.nn.functional.scaled_dot_product_attention(
        inputs["q"], inputs["k"], inputs["v"], seen, scale=1.0, enable_gqa=True
    )
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


def lengths(trt: Any, network: Any, made: Any) -> None:
    made.key_value_lengths = network.add_input("n", trt.int32, (2,))


def no_softmax(trt: Any, network: Any, made: Any) -> None:
    made.norm_op = trt.AttentionNormalizationOp.NONE


def quantised(trt: Any, network: Any, made: Any) -> None:
    made.normalization_quantize_scale = network.add_input("s", trt.float32, ())


@pytest.mark.parametrize(
    ("change", "why"),
    [(lengths, "key_value_lengths"), (no_softmax, "NONE"), (quantised, "quantize")],
)
def test_an_attention_with_more_to_it_is_refused(change: Callable[[Any, Any, Any], None], why: str) -> None:
    from mm2c.verify.network import UnknownLayer

    with pytest.raises(UnknownLayer, match=why) as refused:
        nets.replay_built(attention(change=change))
    assert refused.value.kind == "ATTENTION_INPUT"


def test_packed_rows_are_refused() -> None:
    from mm2c.verify.network import UnknownLayer

    def build(trt: Any, network: Any) -> None:
        q = network.add_input("q", trt.float32, (6, 4, 8))
        k, v = (network.add_input(name, trt.float32, (2, 2, 5, 8)) for name in "kv")
        made = network.add_attention_v2(
            q, k, v, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
        )
        made.query_form, made.query_lengths = (
            trt.AttentionIOForm.PACKED_NHD,
            network.add_input("n", trt.int32, (3,)),
        )
        network.mark_output(made.get_output(0))

    with pytest.raises(UnknownLayer, match="PACKED_NHD"):
        nets.replay_built(build)


def test_a_network_that_is_not_valid_is_an_error() -> None:
    from mm2c.verify.network import ReplayError

    def packed(trt: Any, network: Any, made: Any) -> None:
        made.query_form = trt.AttentionIOForm.PACKED_NHD

    with pytest.raises(ReplayError, match="shape"):
        nets.replay_built(attention(change=packed))


def test_attention_in_bf16_is_computed_in_f32_and_rounded_once() -> None:
    inputs = {name: x.to(BF16) for name, x in heads().items()}
    (found,) = nets.replay_built(narrow_attention).run(inputs).values()
    q, k, v = (x.float() for x in inputs.values())
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0, enable_gqa=True)
    assert found.dtype == BF16
    torch.testing.assert_close(found, expected.to(BF16), rtol=2**-7, atol=0)


def narrow_attention(trt: Any, network: Any) -> None:
    q = network.add_input("q", trt.bfloat16, (2, 4, 3, 8))
    k, v = (network.add_input(name, trt.bfloat16, (2, 2, 5, 8)) for name in "kv")
    made = network.add_attention_v2(q, k, v, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE)
    network.mark_output(made.get_output(0))


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("width", [0, 4])
def test_rotary_embedding_by_position(interleaved: int, width: int) -> None:
    half = (width or 8) // 2
    inputs = {
        "x": floats(2, 3, 4, 8),
        "c": floats(10, half, seed=1),
        "s": floats(10, half, seed=2),
        "p": torch.tensor([[0, 1, 2, 3], [9, 8, 0, 0]]),
    }
    turn = {"num_heads": 3, "rotary_embedding_dim": width} if width else {}
    made = node("RotaryEmbedding", list(inputs), ["y"], interleaved=interleaved, **turn)
    nets.agree(nets.model_of([made], inputs, {"y": F32}, dynamic=False), inputs)


def test_rotary_embedding_with_angles_of_every_token() -> None:
    inputs = {"x": floats(2, 3, 4, 8), "c": floats(2, 4, 4, seed=1), "s": floats(2, 4, 4, seed=2)}
    nets.agree(
        nets.model_of([node("RotaryEmbedding", list(inputs), ["y"])], inputs, {"y": F32}, dynamic=False),
        inputs,
    )


def test_a_position_behind_the_table_is_an_error() -> None:
    from mm2c.verify.network import ReplayError

    inputs = {"x": floats(1, 1, 1, 4), "c": floats(2, 2), "s": floats(2, 2), "p": torch.tensor([[2]])}
    model = nets.model_of([node("RotaryEmbedding", list(inputs), ["y"])], inputs, {"y": F32}, dynamic=False)
    with pytest.raises(ReplayError, match="outside 0"):
        nets.replay_of(model).run(inputs)


def cache_inputs(starts: tuple[int, ...] = (0, 3)) -> dict[str, torch.Tensor]:
    return {"cache": floats(2, 3, 6, 4), "new": floats(2, 3, 2, 4, seed=1), "at": torch.tensor(starts)}


def cache_model(
    inputs: dict[str, torch.Tensor], *more: Any, outputs: tuple[str, ...] = (), **attributes: Any
) -> Any:
    nodes = [node("TensorScatter", ["cache", "new", "at"], ["out"], axis=2, **attributes), *more]
    made = {"out": F32} | dict.fromkeys(outputs, F32)
    return nets.model_of(nodes, inputs, made, dynamic=False)


@pytest.mark.parametrize("starts", [(0, 3), (4, 1)])
def test_new_rows_of_a_cache(starts: tuple[int, ...]) -> None:
    inputs = cache_inputs(starts)
    before = inputs["cache"].clone()
    nets.agree(cache_model(inputs), inputs)
    assert torch.equal(inputs["cache"], before)


@pytest.mark.parametrize("start", [-1, 5])
def test_rows_beyond_the_cache_are_an_error(start: int) -> None:
    from mm2c.verify.network import ReplayError

    inputs = cache_inputs((0, start))
    with pytest.raises(ReplayError, match=f"2 tokens at {start} of 6"):
        nets.replay_of(cache_model(inputs)).run(inputs)


def test_a_cache_that_something_else_reads_is_refused() -> None:
    """TensorRT updates it in place: what the other layer reads would hang on the order."""
    from mm2c.verify.network import UnknownLayer

    inputs = cache_inputs()
    with pytest.raises(UnknownLayer, match="updates in place") as refused:
        nets.replay_of(cache_model(inputs, node("Exp", ["cache"], ["e"], name="reader"), outputs=("e",)))
    assert refused.value.name == "reader"
    shape = node("Shape", ["cache"], ["n"]), node("Cast", ["n"], ["f"], to=1)
    nets.replay_of(cache_model(inputs, *shape, outputs=("f",)))


def test_a_cache_that_is_no_input_is_refused() -> None:
    from mm2c.verify.network import UnknownLayer

    inputs = cache_inputs()
    nodes = [node("Exp", ["cache"], ["e"]), node("TensorScatter", ["e", "new", "at"], ["out"], axis=2)]
    with pytest.raises(UnknownLayer, match="no input of the network"):
        nets.replay_of(nets.model_of(nodes, inputs, {"out": F32}, dynamic=False))
