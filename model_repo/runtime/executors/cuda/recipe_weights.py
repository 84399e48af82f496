"""A rank's weights on its device, made from the checkpoint: the same block of memory, without a file in between."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.aligned import aligned_bytes
from mm2c_runtime.executors.cuda.dtypes import ITEMSIZE
from mm2c_runtime.executors.cuda.program import TensorType
from mm2c_runtime.executors.cuda.weights import ALIGNMENT, Place, text_of, view_of
from mm2c_runtime.weights.checkpoint import StoredCheckpoint
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.evaluate import Region, nbytes, pieces
from mm2c_runtime.weights.fill import split
from mm2c_runtime.weights.load import PIECE, Meter, default_threads, run_all
from mm2c_runtime.weights.recipe import Recipe
from mm2c_runtime.weights.recipe_file import load_recipes

CHUNK = 16 << 20  # bytes of one copy to the device; as many are under way as there are threads


@dataclass(frozen=True, slots=True)
class RecipeWeights:
    """``size``: bytes of all tensors, each aligned."""

    recipes: dict[str, Recipe]
    places: dict[str, Place]
    size: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """The box ``region`` of a recipe is the bytes from ``begin`` to ``end`` of the block."""

    recipe: Recipe
    region: Region
    begin: int
    end: int


def open_recipes(
    path: Path,
    expected: Mapping[str, TensorType],
    checkpoint: StoredCheckpoint,
    alignment: int = ALIGNMENT,
) -> RecipeWeights:
    """Reads the recipes beside ``path``. ``alignment``: of each tensor, in bytes. Raises BundleError where a tensor has
    none, or is of another type than the program reads, or than the checkpoint has."""
    recipes = load_recipes(path)
    wanted, places, end = {}, {}, 0
    for name, kind in expected.items():
        recipe = recipes.get(name)
        found = None if recipe is None else TensorType(recipe.dtype, recipe.shape)
        if recipe is None or found != kind:
            has = "no recipe" if found is None else f"a recipe of {text_of(found)}"
            raise BundleError(
                f"the program reads the tensor {name} as {text_of(kind)}, the bundle has {has}",
                where=str(path.parent),
                remedy="build the bundle again with `mm2c build … --force`",
            )
        begin = -(-end // alignment) * alignment
        end = begin + nbytes(recipe)
        wanted[name], places[name] = recipe, Place(kind, begin, end)
    checkpoint.check_sources(wanted.values())
    return RecipeWeights(wanted, places, end)


def load_from_checkpoint(
    weights: RecipeWeights, checkpoint: StoredCheckpoint, device: torch.device
) -> dict[str, Tensor]:
    """All tensors, contiguous and aligned. Raises BundleError where the checkpoint cannot be read, or changed
    meanwhile."""
    block = aligned_bytes(weights.size, device)
    threads = default_threads()
    meter = Meter(sum(map(nbytes, weights.recipes.values())))
    if device.type == "cuda":
        filler = _Pinned(block, checkpoint, threads)
        try:
            run_all(filler.fill, _pieces(weights), threads, meter.advance)
        finally:
            filler.stream.synchronize()  # before the buffers go
    else:
        host = block.numpy()

        def fill(piece: _Piece) -> int:
            return _fill(piece, host[piece.begin : piece.end], checkpoint)

        run_all(fill, _pieces(weights), threads, meter.advance)
    checkpoint.check_unchanged()
    meter.end()
    return {name: view_of(block, place) for name, place in weights.places.items()}


def _pieces(weights: RecipeWeights) -> Iterator[_Piece]:
    """Stacks of experts go expert by expert."""
    for name, recipe in weights.recipes.items():
        begin = weights.places[name].begin
        for region in pieces(recipe.shape, ITEMSIZE[recipe.dtype], CHUNK):
            size = ITEMSIZE[recipe.dtype]
            for start, stop in region:
                size *= stop - start
            yield _Piece(recipe, region, begin, begin + size)
            begin += size


def _fill(
    piece: _Piece, memory: np.ndarray[tuple[int], np.dtype[np.uint8]], checkpoint: StoredCheckpoint
) -> int:
    shape = tuple(stop - start for start, stop in piece.region)
    target = memory.view(NUMPY[piece.recipe.dtype]).reshape(shape)
    for part in split(piece.recipe, target, PIECE, piece.region):
        part.fill(checkpoint)
    return memory.size


class _Pinned:
    """A pinned buffer a thread: filled from the checkpoint, then copied to the device, while others are filled."""

    def __init__(self, block: Tensor, checkpoint: StoredCheckpoint, threads: int) -> None:
        self.block, self.checkpoint = block, checkpoint
        self.stream = torch.cuda.Stream(block.device)
        self.stream.wait_stream(
            torch.cuda.current_stream(block.device)
        )  # the block's memory may have had a user
        self._free: queue.SimpleQueue[tuple[Tensor, torch.cuda.Event]] = queue.SimpleQueue()
        for _ in range(threads):
            self._free.put((torch.empty(0, dtype=torch.uint8), torch.cuda.Event()))

    def fill(self, piece: _Piece) -> int:
        buffer, copied = self._free.get()
        size = piece.end - piece.begin
        try:
            if buffer.numel() < size:
                buffer = torch.empty(max(size, CHUNK), dtype=torch.uint8, pin_memory=True)
            _fill(piece, buffer.numpy()[:size], self.checkpoint)
            with torch.cuda.stream(self.stream):
                self.block[piece.begin : piece.end].copy_(buffer[:size], non_blocking=True)
                copied.record(self.stream)
            copied.synchronize()  # the buffer is someone else's next
        finally:
            self._free.put((buffer, copied))
        return size
