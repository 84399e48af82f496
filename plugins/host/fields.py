"""Plugin fields: a creator's parameters and what a plugin serialises."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mm2c_plugins.host.errors import PluginError

# TensorRT's PluginFieldType by number: a name, the bytes of an element and, where Python has one, its struct letter
_TYPES: dict[int, tuple[str, int, str | None]] = {
    0: ("float16", 2, "e"),
    1: ("float32", 4, "f"),
    2: ("float64", 8, "d"),
    3: ("int8", 1, "b"),
    4: ("int16", 2, "h"),
    5: ("int32", 4, "i"),
    6: ("char", 1, None),
    7: ("dims", 72, None),
    8: ("unknown", 1, None),
    9: ("bf16", 2, None),
    10: ("int64", 8, "q"),
    11: ("fp8", 1, None),
}
_NUMBERS = {name: number for number, (name, _, _) in _TYPES.items()}


class NativeField(ctypes.Structure):
    """Mm2hField."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class Field(NamedTuple):
    """A field as a creator announces it (``data`` None) or with its value in the machine's byte order."""

    name: str
    type: str
    length: int
    data: bytes | None = None

    @property
    def value(self) -> Any:
        """``data`` as Python's: a number for length 1, else a tuple of numbers, text for char, bytes otherwise."""
        letter = _TYPES[_NUMBERS[self.type]][2]
        if self.data is None:
            return None
        if self.type == "char":
            return self.data.decode("utf-8", "replace")
        if letter is None:
            return self.data
        values = struct.unpack(f"={self.length}{letter}", self.data)
        return values[0] if self.length == 1 else values


def read(native: NativeField) -> Field:
    """A field of the library's with its bytes copied."""
    name, size, _ = _TYPES.get(native.type, ("unknown", 1, None))
    data = ctypes.string_at(native.data, size * native.length) if native.data else None
    return Field((native.name or b"").decode(), name, native.length, data)


def from_attributes(known: Sequence[Field], attributes: Mapping[str, Any]) -> list[Field]:
    """The attributes with the types that the creator's fields ``known`` ask for.

    Raises PluginError for a name that the creator does not know and for a value that its type cannot hold.
    """
    by_name = {field.name: field for field in known}
    fields = []
    for name, value in attributes.items():
        if name not in by_name:
            listed = ", ".join(f"{field.name} ({field.type})" for field in known) or "none"
            raise PluginError(f"has no attribute {name!r}; its attributes are {listed}")
        fields.append(_typed(name, by_name[name].type, value))
    return fields


def native_array(fields: Iterable[Field]) -> tuple[ctypes.Array[NativeField], list[Any]]:
    """An array of Mm2hField, and what must live as long as it."""
    alive: list[Any] = []
    entries = []
    for field in fields:
        name, data = field.name.encode(), field.data or b""
        memory = ctypes.create_string_buffer(data, len(data) + 1)
        alive += [name, memory]
        address = ctypes.addressof(memory) if field.data is not None else None
        entries.append(NativeField(name, address, _NUMBERS[field.type], field.length))
    return (NativeField * max(len(entries), 1))(*entries), alive


def _typed(name: str, type: str, value: Any) -> Field:
    if isinstance(value, str) or type == "char":
        if type != "char" or not isinstance(value, str):
            raise PluginError(f"takes {type} for attribute {name!r}, not {value!r}")
        data = value.encode()
        return Field(name, "char", len(data), data)
    letter = _TYPES[_NUMBERS[type]][2]
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if letter is None:
        raise PluginError(f"takes {type} for attribute {name!r}, which cannot be given as an attribute")
    numbers = (int, float) if letter in "efd" else (int,)
    try:
        if not all(isinstance(v, numbers) for v in values):
            raise TypeError
        data = struct.pack(f"={len(values)}{letter}", *values)
    except (struct.error, OverflowError, TypeError):
        raise PluginError(f"takes {type} for attribute {name!r}, not {value!r}") from None
    return Field(name, type, len(values), data)
