"""Routed experts without a plugin, in two forms: the chosen experts gathered for each token, or all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from onnx import FunctionProto, TensorProto

from mm2c.dialect import moe_bf16, moe_fp8, moe_routing
from mm2c.dialect.body import INT64
from mm2c.lower.native.body import NativeBody

Form = Literal["gather", "dense"]
W13_BLOCK, W2_BLOCK = "w13_block_shape", "w2_block_shape"
_FLOAT = TensorProto.FLOAT


def moe_fp8_body(form: Form, activation: int) -> FunctionProto:
    b = NativeBody(moe_fp8.SCHEMA, [W13_BLOCK, W2_BLOCK])
    routes = moe_routing.route(b)
    scales = ["w13_scale", "w2_scale"]
    if form == "dense":
        scales = [str(b.Mul(scale, _one(b, routes[1]))) for scale in scales]
    w13 = b.dequantized("w13", scales[0], W13_BLOCK, activation)
    w2 = b.dequantized("w2", scales[1], W2_BLOCK, activation)
    return b.function(_FORMS[form](b, routes, w13, w2, activation))


def moe_bf16_body(form: Form, activation: int) -> FunctionProto:
    b = NativeBody(moe_bf16.SCHEMA)
    routes = moe_routing.route(b)
    w13, w2 = (b.Cast(name, to=activation) for name in ("w13", "w2"))
    return b.function(_FORMS[form](b, routes, w13, w2, activation))


def _one(b: NativeBody, ids: str) -> str:
    """1.0, but so that a compiler cannot know before the tokens are routed. Without it TensorRT-RTX 1.7 dequantises the
    experts of all layers of a plan ahead of the hidden state: 1.2 GB of scratch memory for each at M2's sizes."""
    least = b.ReduceMin(ids, keepdims=0)
    return str(b.Cast(b.GreaterOrEqual(least, b.Cast(b.scalar(0), to=TensorProto.INT32)), to=_FLOAT))


def _gather(b: NativeBody, routes: tuple[str, str], w13: str, w2: str, activation: int) -> str:
    """Each token's top_k experts, gathered: reads what it needs, and its scratch memory grows with the tokens."""
    weights, ids = routes
    local = b.Sub(b.Cast(ids, to=INT64), b.attribute("first_expert"))
    last = b.Sub(b.dims(w13, 0, 1), b.ints(1))
    own = b.And(b.GreaterOrEqual(local, b.ints(0)), b.LessOrEqual(local, last))
    nothing = b.Cast(b.ints(0), to=_FLOAT)
    weights = b.Where(own, weights, nothing)
    local = b.Max(b.Min(local, last), b.ints(0))
    x = b.Unsqueeze("x", b.ints(1, 3))  # [T, 1, H, 1]
    hidden = _swiglu(b, b.MatMul(b.Gather(w13, local, axis=0), x), axis=2)  # [T, k, I, 1]
    y = b.Squeeze(b.MatMul(b.Gather(w2, local, axis=0), hidden), b.ints(3))  # [T, k, H]
    weighted = b.Mul(b.Cast(y, to=_FLOAT), b.Unsqueeze(weights, b.ints(2)))
    return str(b.Cast(b.ReduceSum(weighted, b.ints(1), keepdims=0), to=activation))


def _dense(b: NativeBody, routes: tuple[str, str], w13: str, w2: str, activation: int) -> str:
    """Every expert for every token, with weight 0 where it was not chosen: what it costs hardly depends on the
    tokens."""
    weights, ids = routes
    none = b.Mul("logits", b.Cast(b.ints(0), to=_FLOAT))
    share = b.ScatterElements(none, b.Cast(ids, to=INT64), weights, axis=1)  # [T, all experts]
    first = b.attribute("first_expert")
    share = b.Slice(share, first, b.Add(first, b.dims(w13, 0, 1)), b.ints(1))
    share = b.Unsqueeze(b.Cast(b.Transpose(share, perm=[1, 0]), to=activation), b.ints(1))  # [E, 1, T]
    x = b.Unsqueeze(b.Transpose("x", perm=[1, 0]), b.ints(0))  # [1, H, T]
    hidden = _swiglu(b, b.MatMul(w13, x), axis=1)  # [E, I, T]
    y = b.MatMul(w2, b.Mul(hidden, share))  # [E, H, T]
    total = b.ReduceSum(b.Cast(y, to=_FLOAT), b.ints(0), keepdims=0)
    return str(b.Cast(b.Transpose(total, perm=[1, 0]), to=activation))


def _swiglu(b: NativeBody, both: str, axis: int) -> str:
    gate, up = b.Split(both, outputs=2, axis=axis, num_outputs=2)
    return str(b.Mul(b.Mul(gate, b.Sigmoid(gate)), up))


_FORMS: dict[Form, Callable[[NativeBody, tuple[str, str], str, str, int], str]] = {
    "gather": _gather,
    "dense": _dense,
}
