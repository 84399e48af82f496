"""The header of one safetensors file, read and checked against the file's size: no tensor data is touched."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c.errors import UserError
from mm2c_runtime.weights.dtypes import FROM_SAFETENSORS

_ITEMSIZE = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
_MAX_HEADER = 100_000_000  # the format's own limit, bytes
_AGAIN = "download this file again, then run the same command"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. ``dtype`` is "e4m3", "bf16", "f16", "f32", or safetensors' name of any other type;
    ``offset`` counts bytes from the start of the file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"{key!r} appears twice")
            seen.add(key)
    return result


def read_shard(path: Path) -> tuple[dict[str, TensorInfo], bytes]:
    """Tensors of one file, and its raw header. UserError for a missing, truncated or corrupt file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                what = f"{path.name} is truncated or no safetensors file ({size} bytes, header of {length})"
                raise UserError(what, where=str(path), remedy=_AGAIN)
            raw = file.read(length)
    except FileNotFoundError as error:
        raise UserError(f"shard {path.name} is missing", where=str(path.parent), remedy=_AGAIN) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot read shard {path.name}: {reason}", where=str(path), remedy=_AGAIN) from error
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
        tensors = _tensors(header, path.name, 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"the header of {path.name} is corrupt: {error}"
        raise UserError(what, where=str(path), remedy=_AGAIN) from error
    end = max((t.offset + t.nbytes for t in tensors.values()), default=8 + length)
    if end != size:
        problem = "truncated" if size < end else "longer than its header says"
        what = f"shard {path.name} is {problem}: {size} bytes, its header needs {end}"
        raise UserError(what, where=str(path), remedy=_AGAIN)
    return tensors, raw


def _tensors(header: dict[str, Any], file: str, base: int) -> dict[str, TensorInfo]:
    """ValueError where a size disagrees with its offsets, or the tensors leave a gap or overlap."""
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
        if dtype not in _ITEMSIZE:
            raise ValueError(f"tensor {name!r} has the unknown dtype {dtype!r}")
        if end - begin != math.prod(shape) * _ITEMSIZE[dtype] or begin < 0 or min(shape, default=1) < 0:
            raise ValueError(f"tensor {name!r} of {dtype}{list(shape)} cannot lie in bytes {begin} to {end}")
        tensors[name] = TensorInfo(file, FROM_SAFETENSORS.get(dtype, dtype), shape, base + begin, end - begin)
    place = base
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != place:
            raise ValueError(
                f"tensor {name!r} does not follow the one before it (byte {info.offset}, not {place})"
            )
        place += info.nbytes
    return tensors
