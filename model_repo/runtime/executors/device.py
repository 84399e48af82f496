"""Memory of a device that numpy does not reach: arrays by address, and the KV cache in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.values import byte_size
from mm2c_runtime.manifest import KvSpec
from mm2c_runtime.step import RowCopy

_ALIGNMENT = 512  # bytes, as the CUDA driver's own allocations
_F32 = np.dtype(np.float32)


class Device(Protocol):
    """A rank's device. ``kind`` and ``number`` are ONNX Runtime's, such as "cuda" and 0. Sizes are in bytes. Copies
    and ``zero`` may still run when they return, until ``synchronize``; RuntimeError where the device fails."""

    @property
    def kind(self) -> str: ...

    @property
    def number(self) -> int: ...

    def free_bytes(self) -> tuple[int, int]:
        """Memory that is free, and all that the device has."""

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes, all zero. BundleError where the device has no room."""

    def release(self, address: int) -> None: ...

    def copy(self, target: int, source: int, *, width: int, height: int, pitch: int) -> None:
        """``height`` pieces of ``width`` bytes; the next piece begins ``pitch`` bytes on, on both sides."""

    def zero(self, target: int, *, width: int, height: int, pitch: int) -> None:
        """The same pieces, multiples of four bytes."""

    def synchronize(self) -> None:
        """Wait for all that runs there."""

    def close(self) -> None:
        """Let go of the device; what was allocated is gone. Safe to call twice."""


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """An array in row-major order."""

    device: Device
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def size(self) -> int:
        """Bytes."""
        return byte_size(self.shape, self.dtype)

    def slice(self, first: int, count: int) -> DeviceArray:
        """``count`` entries of the first axis."""
        step = byte_size(self.shape[1:], self.dtype)
        return DeviceArray(self.device, self.address + first * step, (count, *self.shape[1:]), self.dtype)


class DeviceMemory:
    """Of an arena (``mm2c_runtime.executors.values.Memory``). Blocks are a little larger than asked for, so that
    steps of similar widths share them."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def block(self, size: int) -> DeviceArray:
        eighth = max(_ALIGNMENT, 1 << max(0, size.bit_length() - 4))
        size = -(-max(size, 1) // eighth) * eighth
        return DeviceArray(self._device, self._device.allocate(size), (size,), np.dtype(np.uint8))

    def array(self, block: DeviceArray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        return DeviceArray(self._device, block.address, shape, dtype)

    def address(self, array: DeviceArray) -> int:
        return array.address


class DeviceCache:
    """One rank's linear rows, as ``LinearCache``, on its device; all memory is there from the start."""

    def __init__(self, spec: KvSpec, rows: int, context: int, device: Device) -> None:
        if spec.dtype != "f32":
            raise BundleError(
                f"ONNX Runtime's programs keep their KV cache in f32, this bundle asks for {spec.dtype}",
                remedy="rebuild with `--engine onnxruntime`",
            )
        self.rows, self.context, self._device = rows, context, device
        shape = (rows, spec.kv_heads, context, spec.head_dim)
        names = [f"{side}_cache.{layer}" for layer in range(spec.layers) for side in "kv"]
        self.bytes_per_token = 4 * spec.kv_heads * spec.head_dim * len(names)
        block = -(-byte_size(shape, _F32) // _ALIGNMENT) * _ALIGNMENT
        begin = device.allocate(block * len(names))
        self.blocks = {
            name: DeviceArray(device, begin + index * block, shape, _F32) for index, name in enumerate(names)
        }

    def slices(self, first: int, count: int) -> dict[str, DeviceArray]:
        """By name, rows ``first`` … ``first + count - 1`` of each block."""
        return {name: block.slice(first, count) for name, block in self.blocks.items()}

    def copy(self, move: RowCopy) -> None:
        """Copy the first ``move.length`` positions of every layer."""
        for block in self.blocks.values():
            target, source = block.slice(move.target, 1), block.slice(move.source, 1)
            copy_positions(target, source, 0, 0, move.length)
        self._device.synchronize()

    def drop(self, row: int) -> None:
        """A row that holds no sequence keeps its memory: it is the next one's, which masks what it did not write."""

    def clear(self, row: int, length: int) -> None:
        """Zero the first ``length`` positions: a NaN left behind would spoil the row's next user, because a masked
        position still enters the weighted sum with weight zero."""
        for block in self.blocks.values():
            _, heads, context, width = block.shape
            self._device.zero(
                block.slice(row, 1).address, width=4 * length * width, height=heads, pitch=4 * context * width
            )
        self._device.synchronize()


def copy_positions(target: DeviceArray, source: DeviceArray, row: int, start: int, stop: int) -> None:
    """Positions ``start`` … ``stop - 1`` of ``row`` of arrays [rows, heads, context, width] of one shape but for
    their rows. May still run when it returns."""
    _, heads, context, width = target.shape
    step = width * target.dtype.itemsize
    offset = row * heads * context * step + start * step
    target.device.copy(
        target.address + offset,
        source.address + offset,
        width=(stop - start) * step,
        height=heads,
        pitch=context * step,
    )
