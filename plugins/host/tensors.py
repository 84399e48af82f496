"""Tensors as plugins see them: a type, a shape and, for a launch, an address."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from mm2c_plugins.host.errors import PluginError

# TensorRT's DataType by the short names that cuda.json and the runtime use
DTYPES = {"f32": 0, "f16": 1, "i8": 2, "i32": 3, "bool": 4, "u8": 5, "e4m3": 6, "bf16": 7, "i64": 8}
DTYPE_NAMES = {number: name for name, number in DTYPES.items()}

# TensorFormat: only kLINEAR is named here; the others serve to see that a plugin refuses them
FORMATS = {"linear": 0, "chw2": 1, "hwc8": 2, "chw4": 3, "chw16": 4, "chw32": 5, "hwc": 8}

MAX_DIMS = 8
_LAYOUT = struct.Struct(f"=3i4x{4 * MAX_DIMS}q")  # Mm2hTensor


class Extent(NamedTuple):
    """An extent that is unknown when the engine is built, between the bounds of an optimisation profile."""

    min: int
    opt: int
    max: int


Shape = Sequence["int | Extent"]


class TensorArg(NamedTuple):
    """A contiguous tensor in memory: ``pointer`` is its first byte's address (the device's, or the host's where a
    launcher of the host runs the kernels).
    """

    dtype: str
    shape: tuple[int, ...]
    pointer: int


class TensorSpec(NamedTuple):
    """A tensor as the builder knows it."""

    dtype: str
    shape: tuple[int | Extent, ...]
    format: str = "linear"


class Described(Protocol):
    """What TensorArg, TensorSpec and the like have in common."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Shape: ...


def dtype_number(dtype: str) -> int:
    """TensorRT's number of a type, from its short name."""
    try:
        return DTYPES[dtype]
    except KeyError:
        raise PluginError(f"{dtype!r} is no tensor type; the types are {', '.join(DTYPES)}") from None


def pack(tensors: Iterable[Described]) -> bytes:
    """The tensors as an array of Mm2hTensor."""
    return b"".join([_packed(t.dtype, tuple(t.shape), getattr(t, "format", "linear")) for t in tensors])


def pack_shapes(shapes: Iterable[Shape]) -> bytes:
    """The same where only shapes count."""
    return b"".join([_packed("f32", tuple(shape), "linear") for shape in shapes])


def room(count: int) -> ctypes.Array[ctypes.c_char]:
    """Memory for ``count`` of Mm2hTensor."""
    return ctypes.create_string_buffer(_LAYOUT.size * max(count, 1))


def unpack_shapes(memory: ctypes.Array[ctypes.c_char], count: int) -> list[tuple[int | Extent, ...]]:
    """The shapes of the first ``count`` of Mm2hTensor in ``memory``."""
    shapes = []
    for i in range(count):
        _, _, rank, *numbers = _LAYOUT.unpack_from(memory, i * _LAYOUT.size)
        known, least, usual, most = (numbers[k * MAX_DIMS : k * MAX_DIMS + rank] for k in range(4))
        bounds = zip(known, least, usual, most, strict=True)
        shapes.append(tuple(extent if extent >= 0 else Extent(*profile) for extent, *profile in bounds))
    return shapes


@lru_cache(maxsize=4096)
def _packed(dtype: str, shape: tuple[int | Extent, ...], format: str) -> bytes:
    if len(shape) > MAX_DIMS:
        raise PluginError(f"a tensor has {len(shape)} dimensions; TensorRT takes at most {MAX_DIMS}")
    if format not in FORMATS:
        raise PluginError(f"{format!r} is no tensor format; the formats are {', '.join(FORMATS)}")
    known, profiles = [], []
    for extent in shape:
        profile = extent if isinstance(extent, Extent) else (extent, extent, extent)
        if not 0 <= profile[0] <= profile[1] <= profile[2]:
            raise PluginError(
                f"the extent {extent} of shape {shape} is negative or has its bounds out of order"
            )
        known.append(-1 if isinstance(extent, Extent) else extent)
        profiles.append(profile)
    pad = [0] * (MAX_DIMS - len(shape))
    bounds = [number for k in range(3) for number in [*(profile[k] for profile in profiles), *pad]]
    return _LAYOUT.pack(dtype_number(dtype), FORMATS[format], len(shape), *known, *pad, *bounds)
