"""Kernel launches as a launcher of the host sees them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

_ARGUMENTS: dict[str, Any] = {
    "p": ctypes.c_uint64,
    "i": ctypes.c_int32,
    "l": ctypes.c_int64,
    "f": ctypes.c_float,
}


class Launch(NamedTuple):
    """One kernel launch.

    ``types`` has a letter an argument: p pointer, i int32, l int64, f float32; ``args`` are the values, pointers as
    addresses. ``block`` is the threads of a block, ``shared`` its dynamic shared memory in bytes.
    """

    kernel: str
    variant: str
    grid: tuple[int, int, int]
    block: int
    shared: int
    types: str
    args: tuple[int | float, ...]
    stream: int


Launcher = Callable[[Launch], "int | None"]


class NativeLaunch(ctypes.Structure):
    """Mm2cLaunch of mm2c/api.h."""

    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("variant", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32),
        ("shared", ctypes.c_uint32),
        ("n_args", ctypes.c_int32),
        ("types", ctypes.c_char_p),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
    )


# Mm2cLauncher
NativeLauncher = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(NativeLaunch), ctypes.c_void_p, ctypes.c_void_p
)


def read(native: NativeLaunch, stream: int | None) -> Launch:
    """The launch with its argument values copied."""
    types = native.types.decode()
    args = tuple(_ARGUMENTS[letter].from_address(native.args[i]).value for i, letter in enumerate(types))
    x, y, z = native.grid
    return Launch(
        native.kernel.decode(),
        native.variant.decode(),
        (x, y, z),
        native.block,
        native.shared,
        types,
        args,
        stream or 0,
    )
