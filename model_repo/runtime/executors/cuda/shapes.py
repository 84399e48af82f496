"""Standard ONNX ops on small host values: sizes, indices and constants, as numpy arrays.

They are computed on the host while a step is enqueued, so that no shape ever comes back from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Host = NDArray[Any]
Attributes = Mapping[str, Any]
NUMPY: dict[str, Any] = {
    "f32": np.float32,
    "f16": np.float16,
    "i32": np.int32,
    "i64": np.int64,
    "bool": np.bool_,
}


def reshaped(shape: Sequence[int], target: Sequence[int], *, allow_zero: bool) -> list[int]:
    """ONNX's Reshape: 0 keeps an extent unless ``allow_zero``; one -1 takes what is left."""
    sizes = [
        int(shape[axis]) if size == 0 and not allow_zero else int(size) for axis, size in enumerate(target)
    ]
    if -1 in sizes:
        total = int(np.prod(shape, dtype=np.int64))
        known = int(np.prod([size for size in sizes if size != -1], dtype=np.int64))
        if known:
            sizes[sizes.index(-1)] = total // known
    return sizes


def slices(
    rank: int, starts: Host, ends: Host, axes: Host | None = None, steps: Host | None = None
) -> tuple[slice, ...]:
    """ONNX's Slice as an index; steps are positive, as everywhere in our graphs."""
    index = [slice(None)] * rank
    chosen = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(chosen, starts.tolist(), ends.tolist(), strides, strict=True):
        index[axis] = slice(start, end, step)
    return tuple(index)


def shape_of(shape: Sequence[int], attributes: Attributes) -> Host:
    """The op Shape."""
    return np.array(tuple(shape)[attributes.get("start", 0) : attributes.get("end")], np.int64)


def _squeeze(a: Attributes, x: Host, axes: Host | None = None) -> Host:
    return np.squeeze(x, None if axes is None else tuple(axes.tolist()))


def _split(a: Attributes, x: Host, sizes: Host | None = None) -> list[Host]:
    axis = a.get("axis", 0)
    if sizes is None:
        return list(np.array_split(x, a["num_outputs"], axis))
    return list(np.split(x, np.cumsum(sizes)[:-1], axis))


OPS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "And": lambda a, x, y: x & y,
    "Less": lambda a, x, y: x < y,
    "GreaterOrEqual": lambda a, x, y: x >= y,
    "Where": lambda a, c, x, y: np.where(c, x, y),
    "Cast": lambda a, x: x.astype(NUMPY[a["to"]]),
    "CastLike": lambda a, x, like: x.astype(like.dtype),
    "Concat": lambda a, *xs: np.concatenate(xs, a["axis"]),
    "Gather": lambda a, x, at: np.take(x, at, a.get("axis", 0)),
    "Identity": lambda a, x: x,
    "Reshape": lambda a, x, to: x.reshape(
        reshaped(x.shape, to.tolist(), allow_zero=bool(a.get("allowzero", 0)))
    ),
    "Shape": lambda a, x: shape_of(x.shape, a),
    "Slice": lambda a, x, *bounds: x[slices(x.ndim, *bounds)],
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": lambda a, x: np.transpose(x, a.get("perm")),
    "Unsqueeze": lambda a, x, axes: np.expand_dims(x, tuple(axes.tolist())),
}
