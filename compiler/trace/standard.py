"""Standard ONNX operators that the exporter would otherwise decompose, as torch custom ops of the trace."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from onnxscript import opset23
from torch import Tensor


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.T


def _last_token(hidden: Tensor, new_len: Tensor) -> Tensor:
    """hidden[B, S, H], new_len i32[B] → hidden[b, new_len[b] - 1] as [B, H]."""
    return hidden[torch.arange(hidden.shape[0]), new_len.long() - 1]


@cache
def register_torch() -> dict[Any, Callable[..., Any]]:
    """The ops ``rms_norm``, ``linear`` and ``last_token`` of torch.ops.mm2c, with their translations to
    standard ONNX.
    """

    rms = torch.library.custom_op(
        "mm2c::rms_norm", _rms_norm, mutates_args=(), schema="(Tensor x, Tensor weight, float eps) -> Tensor"
    )
    rms.register_fake(lambda x, weight, eps: torch.empty_like(x))
    linear = torch.library.custom_op(
        "mm2c::linear", _linear, mutates_args=(), schema="(Tensor x, Tensor weight) -> Tensor"
    )
    linear.register_fake(lambda x, weight: x.new_empty((*x.shape[:-1], weight.shape[0])))
    last = torch.library.custom_op(
        "mm2c::last_token", _last_token, mutates_args=(), schema="(Tensor hidden, Tensor new_len) -> Tensor"
    )
    last.register_fake(lambda hidden, new_len: hidden.new_empty((hidden.shape[0], hidden.shape[2])))

    def rms_norm(x: Any, weight: Any, eps: Any) -> Any:
        return opset23.RMSNormalization(x, weight, axis=-1, epsilon=eps)

    def dense_linear(x: Any, weight: Any) -> Any:
        # one form for every rank of x, which the exporter's own translation would not give
        return opset23.MatMul(x, opset23.Transpose(weight, perm=[1, 0]))

    def last_token(hidden: Any, new_len: Any) -> Any:
        index = opset23.Sub(opset23.Cast(new_len, to=7), opset23.Constant(value_int=1))
        column = opset23.Unsqueeze(index, opset23.Constant(value_ints=[1]))
        return opset23.GatherND(hidden, column, batch_dims=1)

    ops = torch.ops.mm2c
    return {
        ops.rms_norm.default: rms_norm,
        ops.linear.default: dense_linear,
        ops.last_token.default: last_token,
    }
