"""The one-pass repacker: a checkpoint in, every rank's safetensors files out, in bounded memory."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal

from mm2c.errors import UserError
from mm2c.progress import Progress, Quiet, Stage
from mm2c.weights.layout import Entry, FileLayout, WeightJob, lay_out, shared_order
from mm2c.weights.shared_reader import SharedReader, TensorFiles
from mm2c_runtime.weights.evaluate import nbytes, stream
from mm2c_runtime.weights.recipe import Recipe

CHUNK = 16 << 20  # bytes of one piece of a tensor
_QUEUED = 2  # pieces waiting for each of the threads that hash and write
_WRITERS = 8  # such threads at most; sha256 is what takes the time
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class WrittenWeights:
    """A written file: ``entries`` in file order, ``sha256`` of the whole file, its size in ``bytes``."""

    entries: dict[str, Entry]
    sha256: str
    bytes: int


def write_all(
    jobs: Sequence[WeightJob], checkpoint: TensorFiles, progress: Progress | None = None
) -> list[WrittenWeights]:
    """Write the files of all ranks and lowerings in one pass over the checkpoint.

    Each file is valid safetensors, its tensors 64-byte aligned where their sizes allow. Raises UserError
    where the disk cannot hold them (before writing), is full, or a weight is NaN or infinite; the files are
    removed then.
    """
    order = shared_order(jobs)
    layouts = lay_out(jobs, order)
    check_space(jobs, layouts)
    outputs: list[_Output] = []
    try:
        for job, layout in zip(jobs, layouts, strict=True):
            outputs.append(_Output(job.path, layout))
        total = sum(layout.size for layout in layouts)
        with (
            (progress or Quiet()).stage("Writing weights", total) as stage,
            _Background(outputs, stage) as background,
        ):
            for output, layout in zip(outputs, layouts, strict=True):
                background.put(output, layout.header)
            reader = SharedReader(checkpoint)
            for group in order:
                for number, piece in _together(jobs, group, reader):
                    background.put(outputs[number], piece)
        return [output.finish() for output in outputs]
    except BaseException:
        for output in outputs:
            output.discard()
        raise


def _together(
    jobs: Sequence[WeightJob], group: list[tuple[int, str]], reader: SharedReader
) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """The pieces of a group's tensors, the file that is furthest behind first: all read the same experts at
    about the same time, and each file still gets its own tensors whole and in order."""
    names: dict[int, list[str]] = {}
    for number, name in group:
        names.setdefault(number, []).append(name)

    def pieces(number: int) -> Iterator[tuple[float, np.ndarray[Any, Any]]]:
        for place, name in enumerate(names[number]):
            recipe = jobs[number].recipes[name]
            size, done = max(int(np.prod(recipe.shape)), 1), 0
            for piece in stream(recipe, reader, _chunk(recipe)):
                done += piece.size
                yield (place + done / size) / len(names[number]), piece

    running = {number: pieces(number) for number in names}
    done = dict.fromkeys(names, 0.0)
    while running:
        number = min(running, key=lambda n: done[n])
        step = next(running[number], None)
        if step is None:
            del running[number]
            continue
        done[number], piece = step
        yield number, piece


def _chunk(recipe: Recipe) -> int:
    """Stacks go expert by expert, so that all ranks are at the same expert."""
    return min(CHUNK, max(nbytes(recipe) // recipe.shape[0], 1)) if len(recipe.shape) == 3 else CHUNK


def check_space(jobs: Sequence[WeightJob], layouts: Sequence[FileLayout]) -> None:
    """UserError where a file system has too little room for the files that go to it."""
    needed: dict[int, int] = {}
    folder: dict[int, Path] = {}
    for job, layout in zip(jobs, layouts, strict=True):
        device = job.path.parent.stat().st_dev
        needed[device] = needed.get(device, 0) + layout.size
        folder[device] = job.path.parent
    for device, size in needed.items():
        status = os.statvfs(folder[device])
        free = status.f_bavail * status.f_frsize
        if size > free:
            what = f"not enough disk space: the weights need {decimal(size)}, {decimal(free)} are free"
            remedy = f"free {decimal(size - free)}, or write to another disk with -o"
            raise UserError(what, where=str(folder[device]), remedy=remedy)


def _user_error(error: OSError, path: Path) -> UserError:
    if error.errno in _FULL:
        what, remedy = f"disk full while writing {path.name}", "free space, or write to another disk with -o"
    else:
        what, remedy = f"cannot write {path.name}: {error.strerror}", "choose another output folder with -o"
    return UserError(what, where=str(path.parent), remedy=remedy)


class _Output:
    """One growing file and its hash."""

    def __init__(self, path: Path, layout: FileLayout) -> None:
        self.path, self.layout = path, layout
        self.sha = hashlib.sha256()
        self.written = 0
        try:
            self.file = path.open("wb", buffering=0)
        except OSError as error:
            raise _user_error(error, path) from error

    def write(self, data: memoryview) -> None:
        self.sha.update(data)
        try:
            while data:
                count = self.file.write(data) or 0
                data, self.written = data[count:], self.written + count
        except OSError as error:
            raise _user_error(error, self.path) from error

    def finish(self) -> WrittenWeights:
        try:
            os.fsync(self.file.fileno())
            self.file.close()
        except OSError as error:
            raise _user_error(error, self.path) from error
        if self.written != self.layout.size:
            raise AssertionError(f"{self.path}: wrote {self.written} bytes of {self.layout.size}")
        return WrittenWeights(self.layout.entries, self.sha.hexdigest(), self.written)

    def discard(self) -> None:
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


class _Background:
    """Hashes and writes in threads of their own, while the next piece is read and converted. A file belongs
    to one thread, so its pieces stay in order."""

    def __init__(self, outputs: Sequence[_Output], stage: Stage) -> None:
        self._stage = stage
        self._error: BaseException | None = None
        count = max(1, min(_WRITERS, os.cpu_count() or 1, len(outputs)))
        self._queues: list[queue.Queue[tuple[_Output, memoryview] | None]] = [
            queue.Queue(_QUEUED) for _ in range(count)
        ]
        self._owner = {output: self._queues[number % count] for number, output in enumerate(outputs)}
        self._threads = [
            threading.Thread(target=self._run, args=(own,), name="mm2c-weights", daemon=True)
            for own in self._queues
        ]

    def __enter__(self) -> _Background:
        for thread in self._threads:
            thread.start()
        return self

    def put(self, output: _Output, data: bytes | np.ndarray[Any, Any]) -> None:
        if self._error is not None:
            raise self._error
        view = memoryview(data) if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data
        self._owner[output].put((output, view))
        self._stage.advance(len(view))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for own in self._queues:
            own.put(None)
        for thread in self._threads:
            thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self, own: queue.Queue[tuple[_Output, memoryview] | None]) -> None:
        while (item := own.get()) is not None:
            if self._error is not None:
                continue  # drain, so that the producer never blocks
            output, data = item
            try:
                output.write(data)
            except BaseException as error:
                self._error = error
