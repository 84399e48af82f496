"""The standard ONNX ops of a rank program, by torch.

An op takes its node's attributes and its inputs: tensors on the device, or host values (numpy) where the graph has a
constant or a computed size. None of them waits for the device, and all can be captured into a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mm2c_runtime.executors.cuda.dtypes import TORCH
from mm2c_runtime.executors.cuda.shapes import Host, reshaped, shape_of, slices

Value: TypeAlias = Tensor | Host
Attributes = Mapping[str, Any]


def number(value: Value, other: Tensor) -> Any:
    """What stands beside the tensor ``other`` in an elementwise op: a host value is one number, which the kernel
    is launched with, whatever its own shape."""
    if isinstance(value, Tensor):
        return value
    if value.size != 1 or value.ndim > other.ndim:
        raise ValueError(f"a host value of shape {list(value.shape)} beside a tensor of {list(other.shape)}")
    return value.item()


def _filled(value: Value, other: Tensor) -> Tensor:
    """The same where only tensors are taken; filled on the device: a copy from the host could not be captured."""
    found = number(value, other)
    if isinstance(found, Tensor):
        return found
    return torch.full((), found, dtype=other.dtype, device=other.device)


def _binary(function: Callable[[Any, Any], Tensor]) -> Callable[[Attributes, Value, Value], Tensor]:
    def run(a: Attributes, x: Value, y: Value) -> Tensor:
        if isinstance(x, Tensor):
            return function(x, number(y, x))
        assert isinstance(y, Tensor)
        return function(_filled(x, y), y)

    return run


def _where(a: Attributes, condition: Tensor, x: Value, y: Value) -> Tensor:
    like = x if isinstance(x, Tensor) else y
    if not isinstance(condition, Tensor) or not isinstance(like, Tensor):
        raise ValueError("Where: the condition, or both choices, are host values")
    return torch.where(condition, _filled(x, like), _filled(y, like))


def _gather(a: Attributes, x: Value, at: Value) -> Tensor:
    """Indices on the device are not negative: the host has checked the ids that they come from."""
    if not isinstance(x, Tensor):
        raise ValueError("Gather: a host value is indexed by a tensor")
    axis = a.get("axis", 0) % x.ndim
    if not isinstance(at, Tensor):
        if at.ndim == 0:
            return x.select(axis, int(at))
        if at.size == 1:
            return x.narrow(axis, int(at.reshape(())) % x.shape[axis], 1)
        raise ValueError(f"Gather: {at.size} host indices")
    shape = (*x.shape[:axis], *at.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, at.reshape(-1)).view(shape)


def _gather_nd(a: Attributes, x: Value, at: Value) -> Tensor:
    """As Gather: no negative indices."""
    if not isinstance(x, Tensor) or not isinstance(at, Tensor):
        raise ValueError("GatherND: a host value")
    batch, depth = a.get("batch_dims", 0), at.shape[-1]
    sizes = x.shape[: batch + depth]
    flat = torch.zeros(at.shape[:-1], dtype=at.dtype, device=at.device)
    for part, size in zip(at.unbind(-1), sizes[batch:], strict=True):
        flat = flat * size + part
    count, inner = int(np.prod(sizes[:batch], dtype=np.int64)), int(np.prod(sizes[batch:], dtype=np.int64))
    rows = torch.arange(count, dtype=at.dtype, device=at.device) * inner
    flat = flat.reshape(count, -1) + rows[:, None]
    found = x.reshape(count * inner, -1).index_select(0, flat.reshape(-1))
    return found.view(*at.shape[:-1], *x.shape[batch + depth :])


def _split(a: Attributes, x: Tensor, sizes: Host | None = None) -> list[Tensor]:
    """Views of ``x``."""
    axis = a.get("axis", 0)
    if sizes is not None:
        return list(torch.split(x, sizes.tolist(), axis))
    return list(torch.chunk(x, a["num_outputs"], axis))


def _squeeze(a: Attributes, x: Tensor, axes: Host | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(a: Attributes, x: Tensor, axes: Host) -> Tensor:
    rank = x.ndim + axes.size
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _pad(a: Attributes, x: Tensor, pads: Host, value: Host | None = None, axes: Host | None = None) -> Tensor:
    """With one number; ``pads`` has what comes before each axis, then what comes behind."""
    if a.get("mode", "constant") != "constant" or isinstance(value, Tensor):
        raise ValueError("Pad: only with a constant")
    chosen = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes.tolist()]
    before, behind = pads.reshape(2, -1).tolist()
    sides = {axis: pair for axis, *pair in zip(chosen, before, behind, strict=True)}
    flat = [side for axis in range(x.ndim)[::-1] for side in sides.get(axis, (0, 0))]
    return torch.nn.functional.pad(x, flat, value=0.0 if value is None else float(value.item()))


def _rms_norm(a: Attributes, x: Tensor, weight: Tensor) -> Tensor:
    """In f32, rounded to the type of ``x`` before it is scaled (``stash_type`` 1)."""
    if a.get("axis", -1) not in (-1, x.ndim - 1):
        raise ValueError("RMSNormalization: only the last axis")
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + a.get("epsilon", 1e-5))
    return (wide * scale).to(x.dtype) * weight


OPS: dict[str, Callable[..., Any]] = {
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "And": lambda a, x, y: torch.logical_and(x, y),
    "Less": _binary(torch.lt),
    "GreaterOrEqual": _binary(torch.ge),
    "Where": _where,
    "Cast": lambda a, x: x.to(TORCH[a["to"]]),
    "CastLike": lambda a, x, like: x.to(like.dtype) if isinstance(x, Tensor) else x,
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Identity": lambda a, x: x,
    "MatMul": lambda a, x, y: torch.matmul(x, y),
    "Pad": _pad,
    "RMSNormalization": _rms_norm,
    "Reshape": lambda a, x, to: x.reshape(
        reshaped(x.shape, to.tolist(), allow_zero=bool(a.get("allowzero", 0)))
    ),
    "Shape": lambda a, x: shape_of(x.shape, a),
    "Slice": lambda a, x, *bounds: x[slices(x.ndim, *bounds)],
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": lambda a, x: x.permute(a.get("perm", tuple(range(x.ndim))[::-1])),
    "Unsqueeze": _unsqueeze,
}
