"""Where every tensor lies in a rank's safetensors file, and in which order all files are written together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm2c_runtime.weights.dtypes import SAFETENSORS
from mm2c_runtime.weights.evaluate import nbytes
from mm2c_runtime.weights.recipe import (
    ITEMSIZE,
    Computed,
    Concat,
    Dequantize,
    Recipe,
    Source,
    Stack,
)

ALIGNMENT = 64  # bytes; a cache line, and the widest vector load


@dataclass(frozen=True)
class Entry:
    """A tensor of a written file. ``offset`` counts bytes from the start of the file, for ONNX external
    data."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class WeightJob:
    """One file to write: canonical tensor names and how each is made."""

    path: Path
    recipes: dict[str, Recipe]


@dataclass(frozen=True)
class FileLayout:
    header: bytes  # with the eight bytes of its length, padded to ALIGNMENT
    entries: dict[str, Entry] = field(default_factory=dict)  # in file order

    @property
    def size(self) -> int:
        return len(self.header) + sum(entry.nbytes for entry in self.entries.values())


def first_source(recipe: Recipe) -> str:
    """The checkpoint tensor that a recipe reads first: recipes of equal first source are written side by
    side."""
    while not isinstance(recipe, Source):
        if isinstance(recipe, Computed):
            return recipe.kind
        if isinstance(recipe, (Concat, Stack)):
            recipe = recipe.parts[0]
        elif isinstance(recipe, Dequantize):
            recipe = recipe.weight
        else:
            recipe = recipe.of
    return recipe.key


def shared_order(jobs: Sequence[WeightJob]) -> list[list[tuple[int, str]]]:
    """(job, tensor) groups in writing order; a group's members read the same tensors of the checkpoint.

    The groups follow the recipes' order in all jobs at once, so that the files grow together and the checkpoint
    is gone through once. safetensors allows no gaps, so tensors whose size is no multiple of ALIGNMENT in every
    file come last, by falling alignment: all others stay aligned, and each lies on a multiple of its own
    element's size.
    """
    places = sorted(  # how far each job is when the tensor's turn comes: lowerings have more or fewer tensors
        (index / len(job.recipes), number, name)
        for number, job in enumerate(jobs)
        for index, name in enumerate(job.recipes)
    )
    groups: dict[str, list[tuple[int, str]]] = {}
    for _, number, name in places:
        groups.setdefault(first_source(jobs[number].recipes[name]), []).append((number, name))

    def rank(group: list[tuple[int, str]]) -> tuple[int, int]:
        recipes = [jobs[number].recipes[name] for number, name in group]
        sizes = [nbytes(recipe) for recipe in recipes]
        aligned = min(min(size & -size, ALIGNMENT) if size else ALIGNMENT for size in sizes)
        if aligned == ALIGNMENT:
            return -ALIGNMENT, 0
        return -aligned, -max(ITEMSIZE[recipe.dtype] for recipe in recipes)

    return sorted(groups.values(), key=rank)  # stable: otherwise the order of the recipes


def lay_out(jobs: Sequence[WeightJob], order: list[list[tuple[int, str]]]) -> list[FileLayout]:
    return [_file(jobs[number].recipes, _names_of(order, number)) for number in range(len(jobs))]


def _names_of(order: list[list[tuple[int, str]]], job: int) -> Iterator[str]:
    return (name for group in order for number, name in group if number == job)


def _file(recipes: dict[str, Recipe], names: Iterator[str]) -> FileLayout:
    place = 0
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        recipe = recipes[name]
        size = nbytes(recipe)
        table[name] = {
            "dtype": SAFETENSORS[recipe.dtype],
            "shape": list(recipe.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    entries = {
        name: Entry(recipes[name].dtype, recipes[name].shape, len(header) + begin, end - begin)
        for name, (begin, end) in ((name, row["data_offsets"]) for name, row in table.items())
    }
    return FileLayout(header, entries)
