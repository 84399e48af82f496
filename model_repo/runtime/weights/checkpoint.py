"""The checkpoint that a bundle without weights files was built from: found, recognised, and read."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2c_runtime.errors import BundleError
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.finite import first_bad
from mm2c_runtime.weights.identity import content_of, headers_digest, identity_of, index_bytes
from mm2c_runtime.weights.recipe import Recipe, Source, children
from mm2c_runtime.weights.safetensors_file import Stored, read_header, shard_names, tensors_of

if TYPE_CHECKING:  # not at run time: the GPU's checks run where pydantic is not
    from mm2c_runtime.manifest import CheckpointInfo

VARIABLE = "MM2C_CHECKPOINT_FOLDER"
Array = np.ndarray[Any, Any]
_ELSEWHERE = (
    f"if the checkpoint was moved, say where it is: {VARIABLE}=FOLDER, or `mm2c serve --checkpoint FOLDER`"
)
_AGAIN = f"bring the original back, or build the bundle again from this checkpoint; {_ELSEWHERE}"
_ALONE = "leave the checkpoint's files alone while a bundle loads, then start again"


def checkpoint_folder(
    info: CheckpointInfo, given: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Path:
    """``given``, else ``$MM2C_CHECKPOINT_FOLDER``, else where it lay at the build. Raises BundleError where no folder
    is there."""
    named = given or (Path(environment[VARIABLE]) if environment.get(VARIABLE) else None)
    folder = named or Path(info.folder)
    if not folder.is_dir():
        said = "" if named is None else " (by --checkpoint or its variable)"
        raise BundleError(
            f"the bundle has no weights of its own and its checkpoint is not there{said}",
            where=str(folder),
            remedy=_ELSEWHERE + "; or build the bundle with `--weights copy`",
        )
    return folder


class StoredCheckpoint:
    """An open checkpoint that is the one in question. Several threads may read. ``close`` it, or use it as a context
    manager."""

    def __init__(self, folder: Path, tensors: dict[str, Stored], files: list[str]) -> None:
        self.folder, self.tensors = folder, tensors
        self._lock = threading.Lock()
        self._handles: dict[str, int] = {}
        self._states = {file: _state(folder / file) for file in files}

    @classmethod
    def open(cls, folder: Path, info: CheckpointInfo) -> StoredCheckpoint:
        """Compares headers and samples of the data with those of the build before anything is loaded.

        Raises BundleError naming what differs."""
        try:
            files = shard_names(folder)
            headers = [(file, read_header(folder / file)) for file in files]
            identity = identity_of(folder, headers_digest(index_bytes(folder), headers))
            if identity != info.identity:
                raise BundleError(
                    "this is another checkpoint than the bundle's: config.json, the index, or the place or type of a "
                    "tensor differs",
                    where=f"{folder} (the bundle was built from {info.source})",
                    remedy=_AGAIN,
                )
            tensors = {
                name: stored for file, raw in headers for name, stored in tensors_of(raw, file).items()
            }
            found = cls(folder, tensors, files)
            if info.content and content_of(folder, files, identity) != info.content:
                raise BundleError(
                    "the weights are not those that the bundle was built from: tensors of the same names and shapes, "
                    "other values (a fine-tune, or a damaged file)",
                    where=f"{folder} (the bundle was built from {info.source})",
                    remedy=_AGAIN,
                )
        except OSError as error:
            raise BundleError(
                f"the checkpoint cannot be read: {error.strerror or error}",
                where=str(error.filename or folder),
                remedy=_ELSEWHERE,
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"the checkpoint is damaged: {error}", where=str(folder), remedy=_AGAIN
            ) from None
        return found

    def __enter__(self) -> StoredCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            for handle in self._handles.values():
                os.close(handle)
            self._handles.clear()

    def check_sources(self, recipes: Iterable[Recipe]) -> None:
        """Raises BundleError where a recipe reads a tensor that is not there, or of another type."""
        left = list(recipes)
        while left:
            recipe = left.pop()
            if not isinstance(recipe, Source):
                left += children(recipe)
                continue
            stored = self.tensors.get(recipe.key)
            if stored is None or (stored.dtype, stored.shape) != (recipe.dtype, recipe.shape):
                has = "is not there" if stored is None else f"is {stored.dtype}{list(stored.shape)}"
                raise BundleError(
                    f"the bundle reads {recipe.key} as {recipe.dtype}{list(recipe.shape)}, but it {has}",
                    where=str(self.folder),
                    remedy="build the bundle again with `mm2c build … --force`",
                )

    def read_rows(self, key: str, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` along the first axis, in the stored dtype. Raises BundleError."""
        stored = self.tensors[key]
        rows = np.empty((stop - start, *stored.shape[1:]), NUMPY[stored.dtype])
        self.read_into(key, start, rows)
        return rows

    def read_into(self, key: str, start: int, out: Array) -> None:
        """Fill the C-contiguous ``out`` with the rows from ``start`` on. Raises BundleError where they cannot be read,
        or hold NaN or an infinity."""
        stored = self.tensors[key]
        view = out.reshape(-1).view(np.uint8).data
        place = stored.offset + start * (stored.nbytes // max(stored.shape[0], 1))
        try:
            handle = self._handle(stored.file)
            while view:
                count = os.preadv(handle, [view[: 1 << 30]], place)
                if not count:
                    raise BundleError(
                        f"{stored.file} became shorter while it was read",
                        where=str(self.folder),
                        remedy=_ALONE,
                    )
                view, place = view[count:], place + count
        except OSError as error:
            raise BundleError(
                f"{stored.file} cannot be read: {error.strerror or error}",
                where=str(self.folder),
                remedy=_ELSEWHERE,
            ) from None

        bad = first_bad(out)
        if bad is not None:
            index = [int(i) for i in np.unravel_index(bad, out.shape)]
            index[0] += start
            raise BundleError(
                f"{key}{index} is {out.reshape(-1)[bad]}: weights are finite numbers",
                where=str(self.folder / stored.file),
                remedy="the file is damaged or was badly converted: download or convert it again",
            )

    def check_unchanged(self) -> None:
        """Raises BundleError where a file is not the one that was opened, or was written to since."""
        for file, state in self._states.items():
            if _state(self.folder / file) != state:
                raise BundleError(f"{file} changed while it was read", where=str(self.folder), remedy=_ALONE)

    def _handle(self, file: str) -> int:
        with self._lock:
            if file not in self._handles:
                self._handles[file] = os.open(self.folder / file, os.O_RDONLY)
            return self._handles[file]


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
