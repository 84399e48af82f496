"""The values that travel between segments: their types, their shapes in a step, and their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
_SMALLEST = 4096  # bytes of a block


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
        raise BundleError(
            f"a program passes {kind} between segments, which this executor cannot", where=where
        )
    # ONNX Runtime reports a shape of unknown rank as an empty one, like a scalar's.
    known = tuple(s if isinstance(s, int) else str(s) for s in shape) if shape else None
    return ValueType(np.dtype(_DTYPES[kind]), known)


class Memory(Protocol):
    """Where an arena has its blocks. A block is what ``block`` makes; its ``size`` is in bytes."""

    def block(self, size: int) -> Any:
        """At least ``size`` bytes."""

    def array(self, block: Any, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Any:
        """An array at the beginning of ``block``."""

    def address(self, array: Any) -> int: ...


class HostMemory:
    """numpy arrays."""

    def block(self, size: int) -> NDArray[np.uint8]:
        return _aligned(size)

    def array(self, block: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        return block[: byte_size(shape, dtype)].view(dtype).reshape(shape)

    def address(self, array: Array) -> int:
        return array.ctypes.data


class Arena:
    """Memory for the values of a step. A value's memory serves another one after its last use, and every step
    begins with all of it, so that what a long prefill needed does not grow with the number of segments."""

    def __init__(self, memory: Memory | None = None) -> None:
        self._memory: Memory = memory or HostMemory()
        self._blocks: list[Any] = []
        self._free: list[Any] = []
        self._taken: dict[int, Any] = {}  # by address

    def begin(self) -> None:
        """Take back everything that was handed out."""
        self._free, self._taken = list(self._blocks), {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Any:
        """An array that nothing else uses until it is given back; its content is whatever was there."""
        size = byte_size(shape, dtype)
        fitting = [place for place, block in enumerate(self._free) if block.size >= size]
        if fitting:
            block = self._free.pop(min(fitting, key=lambda place: self._free[place].size))
        else:
            block = self._memory.block(size)
            self._blocks.append(block)
        array = self._memory.array(block, shape, dtype)
        self._taken[self._memory.address(array)] = block
        return array

    def give(self, array: Any) -> None:
        """The value is not needed any more in this step."""
        self._free.append(self._taken.pop(self._memory.address(array)))


def byte_size(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _aligned(size: int) -> NDArray[np.uint8]:
    """At least ``size`` bytes, rounded up to a power of two so that steps of similar widths share blocks;
    what is not used is never committed."""
    size = max(_SMALLEST, 1 << (size - 1).bit_length()) if size > 1 else _SMALLEST
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size]
