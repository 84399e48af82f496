"""A rank's weights on its device: one block of memory that the tensors are views of."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.dtypes import ITEMSIZE, SAFETENSORS, TORCH
from mm2c_runtime.executors.cuda.program import TensorType

CHUNK = 64 << 20  # bytes of one copy; two are under way at a time
ALIGNMENT = 16  # bytes, of every tensor: what the kernels need
LOG_SECONDS = 5.0
_REBUILD = "build the bundle again with `mm2c build … --force`"
log = logging.getLogger("mm2c.cuda")


@dataclass(frozen=True, slots=True)
class Place:
    """``begin`` and ``end`` count bytes from the first tensor's first byte."""

    type: TensorType
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A safetensors file whose header was read: ``data`` is where its tensors begin, ``size`` their bytes."""

    path: Path
    data: int
    size: int
    places: dict[str, Place]


def open_weights(path: Path, expected: Mapping[str, TensorType]) -> WeightsFile:
    """Reads the header alone. Raises BundleError where a tensor is missing or of another type, or the file is
    cut short; what nobody expects is left where it is."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            whole = file.seek(0, 2)
            if not 2 <= length <= whole - 8:
                raise ValueError("its header is cut short")
            file.seek(8)
            header = json.loads(file.read(length))
        size = whole - 8 - length
        places = {name: _place(name, raw, size) for name, raw in header.items() if name != "__metadata__"}
    except OSError as error:
        raise BundleError(
            f"the weights cannot be read: {error.strerror}", where=str(path), remedy=_REBUILD
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"the weights are no safetensors file: {error}", where=str(path), remedy=_REBUILD
        ) from None
    for name, wanted in expected.items():
        found = places.get(name)
        if found is None:
            raise BundleError(f"the weights lack the tensor {name}", where=str(path), remedy=_REBUILD)
        if found.type != wanted:
            raise BundleError(
                f"the tensor {name} is {text_of(found.type)}, the program reads {text_of(wanted)}",
                where=str(path),
                remedy=_REBUILD,
            )
    return WeightsFile(path, 8 + length, size, {name: places[name] for name in expected})


def load_weights(weights: WeightsFile, device: torch.device) -> dict[str, Tensor]:
    """All tensors, contiguous and aligned. Raises BundleError where the file cannot be read to its end."""
    block = torch.empty(max(weights.size, 1), dtype=torch.uint8, device=device)
    try:
        with weights.path.open("rb", buffering=0) as file:
            file.seek(weights.data)
            if device.type == "cuda":
                _read_overlapped(file, block, weights.size)
            else:
                _read(file, block[: weights.size])
    except (OSError, EOFError) as error:
        raise BundleError(
            f"the weights cannot be read to their end: {error}", where=str(weights.path), remedy=_REBUILD
        ) from None
    return {name: view_of(block, place) for name, place in weights.places.items()}


def _read_overlapped(file: io.RawIOBase, target: Tensor, size: int) -> None:
    """Chunk after chunk through two pinned buffers: while one is copied to the device, the file is read into the
    other. All is there on return."""
    stream = torch.cuda.Stream(target.device)
    stream.wait_stream(
        torch.cuda.current_stream(target.device)
    )  # the block's memory may have had another user
    buffers = [torch.empty(min(CHUNK, max(size, 1)), dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in buffers]
    try:
        for number, (begin, end) in enumerate(_chunks(size)):
            buffer, event = buffers[number % 2][: end - begin], copied[number % 2]
            event.synchronize()  # one that was never recorded is complete
            _read(file, buffer)
            with torch.cuda.stream(stream):
                target[begin:end].copy_(buffer, non_blocking=True)
                event.record(stream)
    finally:
        stream.synchronize()  # before the buffers go


def _read(file: io.RawIOBase, target: Tensor) -> None:
    """Fill u8[n] on the host; one call of the system reads at most 2 GiB."""
    memory = memoryview(target.numpy())
    while memory:
        count = file.readinto(memory)
        if not count:
            raise EOFError(f"{len(memory)} bytes are missing")
        memory = memory[count:]


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    """Ranges of bytes; says how far they are where that takes long."""
    began = said = time.monotonic()
    for begin in range(0, size, CHUNK):
        yield begin, min(begin + CHUNK, size)
        now = time.monotonic()
        if now - said >= LOG_SECONDS:
            said, done = now, min(begin + CHUNK, size)
            speed = done / (now - began) / 2**30
            log.info("weights: %.1f of %.1f GiB, %.2f GiB/s", done / 2**30, size / 2**30, speed)


def view_of(block: Tensor, place: Place) -> Tensor:
    raw = block[place.begin : place.end]
    if (block.data_ptr() + place.begin) % ALIGNMENT:
        raw = raw.clone()  # a tensor behind one of an odd size: memory of its own is aligned
    return raw.view(TORCH[place.type.dtype]).view(place.type.shape)


def _place(name: str, raw: dict[str, object], size: int) -> Place:
    dtype, shape = SAFETENSORS.get(str(raw["dtype"])), raw["shape"]
    offsets = raw["data_offsets"]
    if dtype is None or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"tensor {name} has dtype {raw['dtype']}, shape {shape}, offsets {offsets}")
    kind = TensorType(dtype, tuple(map(int, shape)))
    begin, end = map(int, offsets)
    expected = ITEMSIZE[dtype]
    for extent in kind.shape:
        expected *= extent
    if not 0 <= begin <= end <= size or end - begin != expected:
        raise ValueError(f"tensor {name} lies at bytes {begin} to {end} of {size}, {expected} expected")
    return Place(kind, begin, end)


def text_of(kind: TensorType) -> str:
    return f"{kind.dtype}{list(kind.shape)}"
