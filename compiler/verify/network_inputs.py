"""What a stage of plans is fed with: a step's tokens, and the caches that a chain carries from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from mm2c.verify.script import Piece, Row
    from mm2c_runtime.manifest_tensorrt import PlanKv, PlanTensor

Array = np.ndarray[Any, Any]
Place = tuple[Any, ...]  # an index into a cache that a stage was given


class Caches(Protocol):
    """The caches of one rank and stage: e4m3 where the plans have that, else f32."""

    def feeds(self, rows: Sequence[Row], pieces: Sequence[Piece]) -> dict[str, Array]:
        """What a step's pieces read, as inputs of the plan; copies."""

    def take(self, rows: Sequence[Row], pieces: Sequence[Piece], outputs: Mapping[str, Array]) -> None:
        """Keep what the step left."""

    def place(self, row: Row, piece: Piece, index: int) -> Place:
        """Where in an input or output the piece, ``index``-th of the step, has its own tokens."""


TOKEN_AXIS = {True: 0, False: 1}  # of ``cache[place]``, by whether caches are of pages


class LinearCaches:
    """[rows, kv_heads, context, head_dim] each: a step reads the rows of its batch."""

    def __init__(self, tensors: Sequence[PlanTensor], rows: int) -> None:
        self._values = {
            t.name: np.zeros((rows, *(int(size) for size in t.shape[1:])), _held(t)) for t in tensors
        }

    def feeds(self, rows: Sequence[Row], pieces: Sequence[Piece]) -> dict[str, Array]:
        own = [rows[piece.row].place for piece in pieces]
        return {name: value[own] for name, value in self._values.items()}

    def take(self, rows: Sequence[Row], pieces: Sequence[Piece], outputs: Mapping[str, Array]) -> None:
        own = [rows[piece.row].place for piece in pieces]
        for name, value in self._values.items():
            value[own] = outputs[output_of(name)]

    def place(self, row: Row, piece: Piece, index: int) -> Place:
        return (index, slice(None), slice(piece.start, piece.stop))


class PagedCaches:
    """[pages, page, kv_heads, head_dim] each: a step reads all of them."""

    def __init__(self, tensors: Sequence[PlanTensor], rows: int, longest: int, page: int) -> None:
        pages = rows * pages_of_row(longest, page)
        self._page, self._rows, self._longest = page, rows, longest
        self._values = {
            t.name: np.zeros((pages, *(int(size) for size in t.shape[1:])), _held(t)) for t in tensors
        }

    def feeds(self, rows: Sequence[Row], pieces: Sequence[Piece]) -> dict[str, Array]:
        return {name: value.copy() for name, value in self._values.items()}

    def take(self, rows: Sequence[Row], pieces: Sequence[Piece], outputs: Mapping[str, Array]) -> None:
        for name, value in self._values.items():
            self._values[name] = np.array(outputs[output_of(name)], value.dtype)

    def place(self, row: Row, piece: Piece, index: int) -> Place:
        table = np.array(page_table(row.place, self._rows, self._longest, self._page))
        tokens = np.arange(piece.start, piece.stop)
        return (table[tokens // self._page], tokens % self._page)


def _held(tensor: PlanTensor) -> Any:
    return ml_dtypes.float8_e4m3fn if tensor.dtype == "e4m3" else np.float32


def make_caches(
    kv: PlanKv, tensors: Sequence[PlanTensor], rows: int, longest: int, *, exact: bool = False
) -> Caches:
    """Empty ones. ``exact``: f32 whatever the plans have."""
    own = [t for t in tensors if t.kind == "cache" and t.mode == "input"]
    if exact:
        own = [t.model_copy(update={"dtype": "f32"}) for t in own]
    return PagedCaches(own, rows, longest, kv.page) if kv.page else LinearCaches(own, rows)


def step_feeds(
    rows: Sequence[Row], pieces: Sequence[Piece], kv: PlanKv, cache_rows: int, longest: int
) -> dict[str, Array]:
    """``input_ids`` i64[batch, seq], ``past_len`` and ``new_len`` i32[batch], and where caches are of pages
    ``block_table`` i32[batch, pages_of_row]. All pieces of a step are equally long: no token is padding."""
    feeds: dict[str, Array] = {
        "input_ids": np.array([rows[p.row].ids[p.start : p.stop] for p in pieces], np.int64),
        "past_len": np.array([p.start for p in pieces], np.int32),
        "new_len": np.array([p.stop - p.start for p in pieces], np.int32),
    }
    if kv.page:
        tables = [page_table(rows[p.row].place, cache_rows, longest, kv.page) for p in pieces]
        feeds["block_table"] = np.array(tables, np.int32)
    return feeds


def pages_of_row(longest: int, page: int) -> int:
    return -(-longest // page)


def page_table(place: int, rows: int, longest: int, page: int) -> list[int]:
    """The pages of a row: every ``rows``-th, from the last, so that neighbours are not in order."""
    return [number * rows + place for number in reversed(range(pages_of_row(longest, page)))]


def output_of(cache: str) -> str:
    return cache.replace("_cache.", "_cache_out.")
