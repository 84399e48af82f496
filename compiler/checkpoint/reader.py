"""A validated checkpoint: its configuration, formats and tensors, read lazily."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from mm2c.checkpoint.config_file import ParsedConfig, read_config
from mm2c.checkpoint.formats import detect_formats
from mm2c.checkpoint.index import TensorIndex, read_index
from mm2c.checkpoint.names import EMBED, HEAD
from mm2c.checkpoint.recipes import recipes_for_config
from mm2c.checkpoint.shard import TensorInfo
from mm2c.checkpoint.validate import check_tensors
from mm2c.checkpoint.values import validate_values
from mm2c.config import ModelConfig, WeightFormats
from mm2c.errors import UserError
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.identity import content_of, identity_of
from mm2c_runtime.weights.recipe import ITEMSIZE, Recipe

Array = np.ndarray[Any, Any]


class Checkpoint:
    """A checkpoint whose configuration and headers hold together; of the data at most a tied head was looked at.

    ``config`` what is compiled · ``formats`` how the linears are stored · ``tied`` whether the head is the
    embedding · ``tensors`` where each tensor lies · ``notes`` what was seen and left out. Use as a context
    manager, or ``close`` it.
    """

    def __init__(self, folder: Path, parsed: ParsedConfig, index: TensorIndex) -> None:
        self.folder = folder
        self.parsed = parsed
        self.config: ModelConfig = parsed.model
        self.tensors: dict[str, TensorInfo] = index.tensors
        self._files: dict[str, int] = {}
        self._opening = threading.Lock()
        self._maps: dict[str, mmap.mmap] = {}
        self._index_digest = index.digest
        self._content: str | None = None
        self.tied = parsed.tied and not self._has_own_head()
        mtp = bool(parsed.raw.get("num_mtp_modules") or parsed.raw.get("use_mtp"))
        ignored = check_tensors(self.config, self.tensors, folder, tied=self.tied, mtp=mtp)
        self.formats: WeightFormats = detect_formats(
            self.config, self.tensors, parsed.quant, folder, self.tied
        )
        self.notes: tuple[str, ...] = (*parsed.notes, *index.notes, *ignored)
        if parsed.tied and not self.tied:
            self.notes += (f"{HEAD} differs from the embedding and is used, though config.json ties the two",)

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Read and check config.json, the index and every shard's header. UserError says what is wrong
        where."""
        folder = Path(folder)
        return cls(folder, read_config(folder), read_index(folder))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the file handles. Arrays that ``read`` returned stay valid."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()
        self._maps.clear()

    def read(self, name: str) -> Array:
        """The tensor as a read-only view of the mapped file, in its stored dtype: nothing is copied."""
        info = self._info(name)
        mapped = self._maps.get(info.file)
        if mapped is None:
            mapped = mmap.mmap(self._handle(info.file), 0, access=mmap.ACCESS_READ)
            self._maps[info.file] = mapped
        count = info.nbytes // ITEMSIZE[info.dtype]
        return np.frombuffer(mapped, NUMPY[info.dtype], count, info.offset).reshape(info.shape)

    def read_rows(self, key: str, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` along the first axis, copied: memory use does not grow with the
        file's. Threads may call it at once."""
        info = self._info(key)
        rows = np.empty((stop - start, *info.shape[1:]), NUMPY[info.dtype])
        row_bytes = info.nbytes // max(info.shape[0], 1)
        view = rows.reshape(-1).view(np.uint8).data
        place, handle = info.offset + start * row_bytes, self._handle(info.file)
        while view:
            count = os.preadv(handle, [view[: 1 << 30]], place)
            if not count:
                what = f"{info.file} became shorter while it was read"
                raise UserError(
                    what, where=str(self.folder), remedy="leave the checkpoint alone during a build"
                )
            view, place = view[count:], place + count
        return rows

    def identity(self) -> str:
        """sha256 over config.json, the index and every header: changes when any tensor's place or type
        does."""
        return identity_of(self.folder, self._index_digest)

    @property
    def files(self) -> list[str]:
        """The shards, by name."""
        return sorted({info.file for info in self.tensors.values()})

    def content(self) -> str:
        """Key of the weights themselves, wherever the folder lies: of samples of them where they are many."""
        if self._content is None:
            self._content = content_of(self.folder, self.files, self.identity())
        return self._content

    def validate_values(self) -> None:
        """Read every scale; UserError names the first that is NaN, infinite, zero or negative."""
        validate_values(self)

    def recipes(self, context: int | None = None) -> dict[str, Recipe]:
        """Recipes of all full graph tensors by canonical name; ``context``: rows of the rope tables."""
        return recipes_for_config(self.config, self.formats, tied=self.tied, context=context)

    def _has_own_head(self) -> bool:
        """Whether a head is stored that is not the embedding: transformers then does not tie the two."""
        head, embedding = self.tensors.get(HEAD), self.tensors.get(EMBED)
        if head is None or embedding is None:
            return False
        alike = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
        return not (alike and np.array_equal(self._bits(HEAD), self._bits(EMBED)))

    def _bits(self, name: str) -> Array:
        return self.read(name).view(np.uint8)  # as numbers NaN is not NaN, and 0 is -0

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise KeyError(f"{name} is not in {self.folder}")
        return self.tensors[name]

    def _handle(self, file: str) -> int:
        with self._opening:
            if file not in self._files:
                try:
                    self._files[file] = os.open(self.folder / file, os.O_RDONLY)
                except OSError as error:
                    raise UserError(
                        f"cannot open {file}: {error.strerror}", where=str(self.folder)
                    ) from error
            return self._files[file]
