"""A rank's weights on its device: one block of memory that the tensors are views of."""

from __future__ import annotations

import io
import json
import logging
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.aligned import aligned_bytes
from mm2c_runtime.executors.cuda.dtypes import ITEMSIZE, SAFETENSORS, TORCH
from mm2c_runtime.executors.cuda.program import TensorType

CHUNK = 64 << 20  # bytes of one copy; two are under way at a time
ALIGNMENT = 16  # bytes, of every tensor: what our kernels need
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


def load_weights(weights: WeightsFile, device: torch.device, alignment: int = ALIGNMENT) -> dict[str, Tensor]:
    """All tensors, contiguous, and on multiples of ``alignment`` bytes. Raises BundleError where the file cannot be
    read to its end."""
    places, moves = laid_out(weights.places, weights.size, alignment)
    block = aligned_bytes(moves[-1].target + moves[-1].size if moves else 0, device)
    try:
        with weights.path.open("rb", buffering=0) as file:
            file.seek(weights.data)
            if device.type == "cuda":
                _read_overlapped(file, block, moves, weights.size)
            else:
                _read_each(file, block, moves, weights.data)
    except (OSError, EOFError) as error:
        raise BundleError(
            f"the weights cannot be read to their end: {error}", where=str(weights.path), remedy=_REBUILD
        ) from None
    return {name: view_of(block, place) for name, place in places.items()}


@dataclass(frozen=True, slots=True)
class Move:
    """``size`` bytes from ``source`` of the file's tensors on become those of the block from ``target`` on."""

    source: int
    target: int
    size: int


def laid_out(places: Mapping[str, Place], size: int, alignment: int) -> tuple[dict[str, Place], list[Move]]:
    """The tensors in the file's order, each on the next multiple of ``alignment``; and the stretches that are copied as
    they are, in order."""
    found: dict[str, Place] = {}
    moves: list[Move] = []
    end = 0
    for name, place in sorted(places.items(), key=lambda item: item[1].begin):
        begin = -(-end // alignment) * alignment
        end = begin + place.end - place.begin
        found[name] = Place(place.type, begin, end)
        last = moves[-1] if moves else None
        if last is not None and place.begin - last.source == begin - last.target:
            moves[-1] = Move(last.source, last.target, end - last.target)
        else:
            moves.append(Move(place.begin, begin, end - begin))
    return {name: found[name] for name in places}, moves


def _read_each(file: io.RawIOBase, block: Tensor, moves: Sequence[Move], data: int) -> None:
    for move in moves:
        file.seek(data + move.source)
        _read(file, block[move.target : move.target + move.size])


def _read_overlapped(file: io.RawIOBase, target: Tensor, moves: Sequence[Move], size: int) -> None:
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
                for first, last, place in within(moves, begin, end):
                    target[place : place + last - first].copy_(
                        buffer[first - begin : last - begin], non_blocking=True
                    )
                event.record(stream)
    finally:
        stream.synchronize()  # before the buffers go


def within(moves: Sequence[Move], begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Of the file's bytes from ``begin`` to ``end``: (first, last, where the first goes) of every stretch. ``moves``
    are in the file's order."""
    place = max(0, bisect_right(moves, begin, key=lambda move: move.source) - 1)
    for move in moves[place:]:
        if move.source >= end:
            return
        first, last = max(begin, move.source), min(end, move.source + move.size)
        if first < last:
            yield first, last, move.target + first - move.source


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
