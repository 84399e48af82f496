"""Bodies of native layers against the specification's, in f32: ONNX Runtime runs both on the same inputs."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto, helper

from mm2c.dialect import DOMAIN, ops
from mm2c.lower.native import MoeForm, native_bodies
from mm2c.lower.native.body import OPSET

FLOAT = TensorProto.FLOAT
Array = NDArray[Any]
FORMS: list[MoeForm] = ["gather", "dense"]


def run(name: str, bodies: list[FunctionProto], given: dict[str, Array], **attributes: Any) -> list[Array]:
    """Op ``name`` of f32 and e4m3 arrays through ``bodies``; e4m3 arrays as graph constants."""
    kinds = {"float32": FLOAT, "int32": TensorProto.INT32, "float8_e4m3fn": TensorProto.FLOAT8E4M3FN}
    inputs, held = [], []
    for key, array in given.items():
        kind = kinds[array.dtype.name]
        if array.itemsize == 1:
            held.append(helper.make_tensor(key, kind, array.shape, array.tobytes(), raw=True))
        else:
            inputs.append(helper.make_tensor_value_info(key, kind, list(array.shape)))
    outputs = [o.name for o in ops[name].schema.outputs]
    node = helper.make_node(name, list(given), outputs, domain=DOMAIN, **attributes)
    model = helper.make_model(
        helper.make_graph(
            [node],
            "one_op",
            inputs,
            [helper.make_tensor_value_info(o, FLOAT, None) for o in outputs],
            initializer=held,
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=bodies,
        ir_version=11,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    fed = {key: array for key, array in given.items() if array.itemsize > 1}
    found: list[Array] = session.run(None, fed)
    return found


def specified(name: str) -> list[FunctionProto]:
    function = ops[name].body()
    function.opset_import[0].version = OPSET
    return [function]


def agree(name: str, given: dict[str, Array], form: MoeForm, more: dict[str, Any], **attributes: Any) -> None:
    """``more``: the attributes that only the native body reads."""
    wanted = run(name, specified(name), given, **attributes)
    got = run(name, native_bodies({name}, form, FLOAT), given, **attributes, **more, plugin_namespace="mm2c")
    for one, other in zip(wanted, got, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(other, one, rtol=0, atol=3e-6 * max(1e-3, float(np.abs(one).max())))


def e4m3(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)


def f32(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("lead", [(3,), (2, 5), (1, 1)])
@pytest.mark.parametrize(("block_n", "block_k"), [(128, 128), (64, 128)])
def test_fp8_linear(lead: tuple[int, ...], block_n: int, block_k: int) -> None:
    rng = np.random.default_rng(1)
    w = e4m3(rng, 256, 384)
    scale = np.abs(f32(rng, 256 // block_n, 384 // block_k))
    given = {"x": f32(rng, *lead, 384), "w": w, "scale": scale}
    block = {"block_n": block_n, "block_k": block_k}
    agree("M2Fp8Linear", given, "dense", {"block_shape": [block_n, block_k]}, **block)


@pytest.mark.parametrize("lead", [(3,), (2, 5)])
def test_dense_linear(lead: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    given = {"x": f32(rng, *lead, 24), "w": f32(rng, 10, 24)}
    agree("M2DenseLinear", given, "dense", {}, out_dtype=FLOAT)


@pytest.mark.parametrize("past", [[0], [5, 0, 11]])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1), (2, 2)])
def test_attention_of_one_new_token_in_each_row(past: list[int], heads: tuple[int, int]) -> None:
    _attention(len(past), 1, past, *heads)


@pytest.mark.parametrize(("width", "past"), [(7, 0), (4, 9), (12, 0)])
def test_attention_of_several_new_tokens_in_a_row(width: int, past: int) -> None:
    _attention(1, width, [past], 4, 2)


def _attention(batch: int, width: int, past: list[int], heads: int, kv_heads: int) -> None:
    given, attributes = attention_inputs(past, [width] * batch, heads, kv_heads)
    rng, shape = np.random.default_rng(batch), (batch, kv_heads, 16, attributes["head_dim"])
    given |= {"k_cache": f32(rng, *shape), "v_cache": f32(rng, *shape)}
    agree("M2Attention", given, "dense", {}, **attributes)


def attention_inputs(
    past: list[int], new: list[int], heads: int, kv_heads: int
) -> tuple[dict[str, Array], dict[str, Any]]:
    """All inputs but the cache, as wide as the longest row, and the attributes."""
    batch, width, dim, rotary = len(past), max(new), 8, 4
    rng = np.random.default_rng(width)
    q, k = f32(rng, batch, width, heads * dim), f32(rng, batch, width, kv_heads * dim)
    angles = f32(rng, 64, rotary // 2)
    given = {
        "q": q,
        "k": k,
        "v": f32(rng, batch, width, kv_heads * dim),
        "s": np.stack([np.square(q).sum(-1), np.square(k).sum(-1)], -1),
        "q_weight": f32(rng, heads * dim),
        "k_weight": f32(rng, kv_heads * dim),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "past_len": np.array(past, np.int32),
        "new_len": np.array(new, np.int32),
    }
    attributes = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "rotary_dim": rotary, "eps": 1e-6}
    attributes |= {"scale": dim**-0.5, "q_total": heads * dim, "k_total": kv_heads * dim}
    return given, attributes


@pytest.mark.parametrize(("past", "new"), [([0], [6]), ([5, 0, 11], [1, 1, 1]), ([3, 0], [2, 4])])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
def test_attention_over_pages(past: list[int], new: list[int], heads: tuple[int, int]) -> None:
    """Padding included: the third case has rows of two and of four tokens."""
    given, attributes = attention_inputs(past, new, *heads)
    rng, pages, batch = np.random.default_rng(len(past)), 16, len(past)
    shape = (pages, 4, heads[1], attributes["head_dim"])
    table = rng.permutation(pages)[: batch * 4].reshape(batch, 4).astype(np.int32)
    given |= {"block_table": table, "k_cache": f32(rng, *shape), "v_cache": f32(rng, *shape)}
    wanted = run("M2PagedAttention", specified("M2PagedAttention"), given, **attributes)
    got = run("M2PagedAttention", native_bodies({"M2PagedAttention"}, "dense", FLOAT), given, **attributes)
    for row, count in enumerate(new):
        np.testing.assert_allclose(got[0][row, :count], wanted[0][row, :count], rtol=0, atol=3e-6)
    for one, other in zip(wanted[1:], got[1:], strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=3e-6)


# tokens, hidden, intermediate, local experts, top_k, first expert, all experts
EXPERTS = [
    (1, 128, 128, 4, 2, 0, 4),
    (5, 128, 256, 4, 3, 2, 8),
    (33, 256, 64, 8, 2, 0, 8),
    (2, 64, 128, 2, 1, 6, 8),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", EXPERTS)
def test_fp8_experts(shape: tuple[int, ...], form: MoeForm) -> None:
    tokens, hidden, inner, local, top_k, first, experts = shape
    rng, n, k = np.random.default_rng(tokens), min(128, inner), min(128, hidden)
    given = {
        "x": f32(rng, tokens, hidden),
        "logits": f32(rng, tokens, experts),
        "bias": f32(rng, experts),
        "w13": e4m3(rng, local, 2 * inner, hidden),
        "w13_scale": np.abs(f32(rng, local, 2 * inner // n, hidden // k)) * 0.05,
        "w2": e4m3(rng, local, hidden, inner),
        "w2_scale": np.abs(f32(rng, local, hidden // k, inner // n)) * 0.05,
    }
    more = {"w13_block_shape": [1, n, k], "w2_block_shape": [1, k, n]}
    agree("M2MoeFp8", given, form, more, top_k=top_k, first_expert=first, block_n=n, block_k=k)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", EXPERTS)
def test_dense_experts(shape: tuple[int, ...], form: MoeForm) -> None:
    tokens, hidden, inner, local, top_k, first, experts = shape
    rng = np.random.default_rng(tokens)
    given = {
        "x": f32(rng, tokens, hidden),
        "logits": f32(rng, tokens, experts),
        "bias": f32(rng, experts),
        "w13": f32(rng, local, 2 * inner, hidden) * np.float32(0.1),
        "w2": f32(rng, local, hidden, inner) * np.float32(0.1),
    }
    agree("M2MoeBf16", given, form, {}, top_k=top_k, first_expert=first)


def test_an_expert_of_another_rank_leaves_no_trace() -> None:
    rng = np.random.default_rng(3)
    given = {
        "x": f32(rng, 3, 64),
        "logits": np.tile(np.array([9, 8, -9, -9], np.float32), (3, 1)),  # experts 0 and 1 are chosen
        "bias": np.zeros(4, np.float32),
        "w13": f32(rng, 2, 128, 64),
        "w2": f32(rng, 2, 64, 64),
    }
    for form in FORMS:
        bodies = native_bodies({"M2MoeBf16"}, form, FLOAT)
        (y,) = run("M2MoeBf16", bodies, given, top_k=2, first_expert=2)
        assert not y.any()


def test_an_op_without_native_layers_is_named() -> None:
    with pytest.raises(KeyError, match="M2MoeRouting"):
        native_bodies({"M2MoeRouting"}, "dense", FLOAT)
