"""libmm2c_host.so through ctypes."""

from __future__ import annotations

import ctypes
from ctypes import CDLL, POINTER, c_char_p, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from mm2c_plugins.host.errors import PluginError
from mm2c_plugins.host.fields import NativeField

ABI = 1
NAME = "libmm2c_host.so"

_TEXT = POINTER(c_char_p)
_INT = POINTER(c_int32)
_FIELD = POINTER(NativeField)
# function: what it returns and what it takes; tensors are bytes made by tensors.pack
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "abi": (c_int, []),
    "error": (c_char_p, []),
    "open": (c_void_p, [c_char_p]),
    "symbol": (c_void_p, [c_void_p, c_char_p]),
    "creator_count": (c_int, [c_void_p]),
    "creator": (c_int, [c_void_p, c_int, _TEXT, _TEXT, _TEXT, _INT]),
    "creator_field": (c_int, [c_void_p, c_int, c_int, _FIELD]),
    "create": (c_void_p, [c_void_p, c_int, c_char_p, _FIELD, c_int32, c_int]),
    "clone": (c_void_p, [c_void_p]),
    "destroy": (None, [c_void_p]),
    "identity": (c_int, [c_void_p, _TEXT, _TEXT, _TEXT]),
    "serialize": (c_int, [c_void_p]),
    "serialized": (c_int, [c_void_p, c_int, _FIELD]),
    "output_count": (c_int, [c_void_p]),
    "output_dtypes": (c_int, [c_void_p, _INT, c_int32, _INT, c_int32]),
    "output_shapes": (c_int, [c_void_p, c_char_p, c_int32, c_void_p, c_int32]),
    "refused_position": (c_int, [c_void_p, c_char_p, c_int32, c_int32]),
    "takes_position": (c_int, [c_void_p, c_int32, c_char_p, c_int32, c_int32]),
    "aliased_input": (c_int, [c_void_p, c_int32]),
    "tactics": (c_int, [c_void_p, _INT, c_int32]),
    "configure": (c_int, [c_void_p, c_char_p, c_int32, c_int32]),
    "workspace": (c_int64, [c_void_p, c_char_p, c_int32, c_int32]),
    "attach": (c_void_p, [c_void_p]),
    "detach": (None, [c_void_p]),
    "set_tactic": (c_int, [c_void_p, c_int32]),
    "shape_change": (c_int, [c_void_p, c_char_p, c_int32, c_int32]),
    "prepare": (c_void_p, [c_void_p, c_char_p, c_int32, c_int32, c_void_p]),
    "discard": (None, [c_void_p]),
    "launch": (c_int, [c_void_p, c_void_p, c_void_p]),
}


class Host:
    """The functions of mm2c/host.h without their prefix, as attributes."""

    def __init__(self, path: Path) -> None:
        try:
            # not PyDLL: a launch may wait for room in the stream, and other threads must go on meanwhile
            library = CDLL(str(path))
        except OSError as error:
            raise PluginError(f"cannot load the plugin host {path}: {error}") from None
        for name, (result, arguments) in _FUNCTIONS.items():
            try:
                function = getattr(library, f"mm2c_host_{name}")
            except AttributeError:
                raise PluginError(f"{path} is no plugin host: it lacks mm2c_host_{name}") from None
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        found = self.abi()
        if found != ABI:
            raise PluginError(
                f"the plugin host {path} has interface {found}, this binding {ABI}: "
                "take both from the same bundle or build"
            )

    def __getattr__(self, name: str) -> Any:  # only for names that __init__ did not set
        raise AttributeError(name)

    def reason(self) -> str:
        """What the last failed call of this thread had to say."""
        text: bytes = self.error()
        return text.decode("utf-8", "replace")


@cache
def host(path: Path) -> Host:
    """The host library at ``path``, loaded once a process."""
    return Host(path)


def texts() -> tuple[c_char_p, c_char_p, c_char_p]:
    """Three places for a name, a version and a namespace."""
    return c_char_p(), c_char_p(), c_char_p()


def integers(values: list[int]) -> ctypes.Array[c_int32]:
    """An int32 array with at least one element."""
    return (c_int32 * max(len(values), 1))(*values)
