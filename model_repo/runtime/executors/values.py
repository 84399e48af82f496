"""The values that travel between segments: their types, their shapes for a step, and the memory they live in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import BundleError

Array = NDArray[np.generic]

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
}
_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


@dataclass(frozen=True, slots=True)
class ValueType:
    """``shape`` holds sizes and the names of symbolic ones; None where the program does not say the rank."""

    dtype: np.dtype[np.generic]
    shape: tuple[int | str, ...] | None

    def sizes(self, symbols: Mapping[str, int]) -> tuple[int, ...] | None:
        """The shape with ``symbols`` put in; None where a symbol is unknown, so that only the run can tell.

        A symbolic size may be a product, such as ``batch*seq``.
        """
        if self.shape is None:
            return None
        sizes: list[int] = []
        for size in self.shape:
            if isinstance(size, str):
                product = 1
                for factor in size.replace(" ", "").split("*"):
                    if factor.isdigit():
                        product *= int(factor)
                    elif factor in symbols:
                        product *= symbols[factor]
                    else:
                        return None
                size = product
            sizes.append(size)
        return tuple(sizes)


def value_type(kind: str, shape: Sequence[object] | None, *, where: str) -> ValueType:
    """From what ONNX Runtime reports of a session's input or output."""
    if kind not in _DTYPES:
        raise BundleError(f"a program passes {kind} between segments, which the CPU executor cannot", where=where)
    # ONNX Runtime reports a shape of unknown rank as an empty one, like a scalar's.
    known = tuple(s if isinstance(s, int) else str(s) for s in shape) if shape else None
    return ValueType(np.dtype(_DTYPES[kind]), known)


class Buffers:
    """Reusable memory by key. ``grown`` counts replacements: who holds views made before must make them anew."""

    def __init__(self) -> None:
        self._memory: dict[object, NDArray[np.uint8]] = {}
        self.grown = 0

    def view(self, key: object, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        """An array over the memory of ``key``, which grows to fit. Its content is whatever was there."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = self._memory.get(key)
        if memory is None or memory.size < size:
            self.grown += memory is not None
            memory = _aligned(size)
            self._memory[key] = memory
        return memory[:size].view(dtype).reshape(shape)


def _aligned(size: int) -> NDArray[np.uint8]:
    raw = np.empty(max(size, 1) + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + max(size, 1)]
