"""The header of a safetensors file and the shards of a checkpoint folder: no tensor data is touched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c_runtime.weights.dtypes import FROM_SAFETENSORS

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_MAX_HEADER = 100_000_000  # the format's own limit, bytes


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies. ``dtype`` is a recipe's, or safetensors' name of any other; ``offset`` counts bytes from
    the start of the file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def shard_names(folder: Path) -> list[str]:
    """The files that hold a checkpoint's tensors, sorted. OSError or ValueError where there are none to read."""
    index = folder / INDEX
    if not index.is_file():
        return [SINGLE]
    weight_map = json.loads(index.read_bytes())["weight_map"]
    files = sorted(set(weight_map.values()))
    for file in files:
        if Path(file).name != file:
            raise ValueError(f"{INDEX} names {file!r}, which is no file of its folder")
    return files


def read_header(path: Path) -> bytes:
    """The raw JSON header. OSError, or ValueError where the file is too short for one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= _MAX_HEADER else b""
    if not raw or len(raw) != length:
        raise ValueError(f"{path.name} is cut short or no safetensors file")
    return raw


def tensors_of(header: bytes, file: str) -> dict[str, Stored]:
    """By name. ValueError, KeyError or TypeError for a header that is none."""
    found = {}
    entries: dict[str, Any] = json.loads(header)
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        begin, end = (int(place) for place in entry["data_offsets"])
        found[name] = Stored(
            file,
            FROM_SAFETENSORS.get(entry["dtype"], entry["dtype"]),
            tuple(int(size) for size in entry["shape"]),
            8 + len(header) + begin,
            end - begin,
        )
    return found
