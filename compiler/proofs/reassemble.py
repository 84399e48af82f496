"""The checkpoint's tensors put together again from the ranks' files: the proof's boxes, on the bytes themselves."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mm2c.progress import Bytes, Progress, Quiet, Stage
from mm2c.proofs.boxes import FILL, decompose
from mm2c.proofs.failure import ProofError
from mm2c.proofs.pieces import Axis, Box, Piece, Run
from mm2c.proofs.shard_files import BITS, Array, ShardFile
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.evaluate import nbytes, stream
from mm2c_runtime.weights.recipe import ITEMSIZE, Recipe
from mm2c_runtime.weights.recipe_file import SUFFIX, load_recipes

BAND = 16 << 20  # bytes of a checkpoint tensor that a thread holds at once
THREADS = 2
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class TensorReader(Protocol):
    """What is needed of a ``Checkpoint``."""

    def read_rows(self, key: str, start: int, stop: int) -> Array: ...


class Mismatch(NamedTuple):
    """Bytes of a rank's file that are not the checkpoint's. ``key``: of the checkpoint, empty for a header or what was
    computed; ``tensor``: of the file."""

    file: str
    rank: int
    tensor: str
    key: str
    what: str

    def __str__(self) -> str:
        of = f", of {self.key}" if self.key else ""
        return f"{self.file}: {self.tensor or 'header'}{of}: {self.what}"


@dataclass
class ShardReport:
    """``reassembled``: checkpoint tensors that the pieces make again byte by byte, replicas included; ``converted``:
    rank tensors that hold other bytes than the checkpoint and were made anew to compare; ``bytes`` of the ranks' files
    that were compared; ``sha256`` over the names and sha256 of what was reassembled, the checkpoint's own."""

    reassembled: int = 0
    converted: int = 0
    bytes: int = 0
    sha256: str = ""
    mismatches: list[Mismatch] = field(default_factory=list)

    def require(self) -> None:
        """Raises ProofError that names the first mismatches."""
        if self.mismatches:
            shown = "\n  ".join(str(m) for m in self.mismatches[:5])
            raise ProofError(f"{len(self.mismatches)} mismatches with the checkpoint:\n  {shown}")

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "mismatches": [m._asdict() for m in self.mismatches]}


class _Use(NamedTuple):
    """One piece of a checkpoint tensor in a file."""

    file: ShardFile
    tensor: str
    recipe: Recipe
    piece: Piece


def verify_shards(
    bundle: Path,
    checkpoint: TensorReader,
    progress: Progress | None = None,
    *,
    recipes: Mapping[str, dict[str, Recipe]] | None = None,
) -> ShardReport:
    """Compare every byte of the ranks' weight files with the checkpoint. ``recipes``: of each file by its path in the
    bundle; None: as the bundle has them beside the files.

    Tensors whose bytes were moved are reassembled, and every copy is compared; the others are computed again. Memory
    is a few bands of ``BAND`` bytes and one layer's pieces. A bundle without weight files has nothing to compare.
    """
    known = recipes if recipes is not None else _recipes_of(bundle)
    total = sum(nbytes(recipe) for some in known.values() for recipe in some.values())
    report = ShardReport(bytes=total)
    digests: dict[str, str] = {}
    with ExitStack() as stack:
        stage = stack.enter_context((progress or Quiet()).stage("Comparing the shards", Bytes(total)))
        pool = stack.enter_context(ThreadPoolExecutor(THREADS, "mm2c-shards"))
        for kind in sorted({Path(path).name for path in known}):
            files = {}
            for path in sorted(p for p in known if Path(p).name == kind):
                file = ShardFile(bundle, path)
                stack.callback(file.close)
                wrong = file.fault(known[path])
                if wrong:
                    report.mismatches.append(Mismatch(path, file.rank, "", "", wrong))
                else:
                    files[file] = known[path]
            checks = _Checks(checkpoint, stage, report, complete=not report.mismatches)
            for made in _finished(pool, checks.of(files)):
                digests |= dict(made)
    digest = hashlib.sha256()
    for key, value in sorted(digests.items()):
        digest.update(f"{key} {value}\n".encode())
    report.reassembled, report.sha256 = len(digests), digest.hexdigest()
    report.mismatches.sort()
    return report


def _recipes_of(bundle: Path) -> dict[str, dict[str, Recipe]]:
    found = {}
    for path in sorted(bundle.glob(f"rank*/*{SUFFIX}")):
        weights = path.with_name(path.name.removesuffix(SUFFIX) + ".safetensors")
        if weights.exists():  # else the ranks read the checkpoint itself
            found[weights.relative_to(bundle).as_posix()] = load_recipes(weights)
    return found


Digests = list[tuple[str, str]]


def _finished(pool: ThreadPoolExecutor, tasks: Iterator[Callable[[], Digests]]) -> Iterator[Digests]:
    """Results as they come; few tasks wait, because each names pieces."""
    running: set[Future[Digests]] = set()
    for task in tasks:
        running.add(pool.submit(task))
        if len(running) > 4 * THREADS:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    for future in running:
        yield future.result()


@dataclass
class _Checks:
    checkpoint: TensorReader
    stage: Stage
    report: ShardReport
    complete: bool  # whether all ranks' files can be read

    def of(self, files: Mapping[ShardFile, dict[str, Recipe]]) -> Iterator[Callable[[], Digests]]:
        """Tasks, layer by layer."""
        layers: dict[int, list[tuple[ShardFile, str, Recipe]]] = {}
        for file, recipes in files.items():
            for name, recipe in recipes.items():
                match = _LAYER.match(name)
                layers.setdefault(int(match[1]) if match else -1, []).append((file, name, recipe))
        for some in layers.values():
            uses: dict[str, list[_Use]] = {}
            for file, name, recipe in some:
                boxes = decompose(recipe)
                pieces = [piece for run in boxes.runs for piece in run.pieces]
                if boxes.tables or any(piece.how for piece in pieces):
                    self.report.converted += 1
                    yield self._converted(file, name, recipe)
                    continue
                for run in boxes.runs:
                    _collect(uses, _Use(file, name, recipe, run.pieces[0]), run)
            for key, own in uses.items():
                yield self._fill(key, own) if key.startswith(FILL) else self._moved(key, own)

    def _mismatch(self, file: ShardFile, tensor: str, key: str, what: str) -> None:
        self.report.mismatches.append(Mismatch(file.path, file.rank, tensor, key, what))

    def _converted(self, file: ShardFile, name: str, recipe: Recipe) -> Callable[[], Digests]:
        def run() -> Digests:
            place = 0
            for made in stream(recipe, self.checkpoint, BAND):
                data = made.reshape(-1).view(np.uint8)
                if not np.array_equal(data, file.bytes_at(name, place, data.size)):
                    self._mismatch(file, name, "", f"bytes [{place}, {place + data.size}) differ")
                place += data.size
                self.stage.advance(data.size)
            return []

        return run

    def _fill(self, key: str, uses: Sequence[_Use]) -> Callable[[], Digests]:
        def run() -> Digests:
            for use in uses:
                value = np.array(float(key.removeprefix(FILL)), NUMPY[use.recipe.dtype])
                given = use.file.read(use.tensor, use.recipe, use.piece.axes)
                if (given != value.view(BITS[value.itemsize])).any():
                    self._mismatch(use.file, use.tensor, "", "padding differs")
                self.stage.advance(given.nbytes)
            return []

        return run

    def _moved(self, key: str, uses: Sequence[_Use]) -> Callable[[], Digests]:
        def run() -> Digests:
            shape, dtype = uses[0].piece.shape, uses[0].piece.dtype
            row = math.prod(shape[1:]) * ITEMSIZE[dtype]
            step = max(BAND // max(row, 1), 1)
            same, digest = True, hashlib.sha256()
            for start in range(0, shape[0], step):
                stop = min(start + step, shape[0])
                band = np.ascontiguousarray(self.checkpoint.read_rows(key, start, stop))
                bits = band.view(BITS[band.itemsize])
                again = np.zeros_like(bits)
                for use in uses:
                    self._compare(key, use, bits, again, start)
                same = same and np.array_equal(again, bits)
                digest.update(again.data)
            if same:
                return [(key, digest.hexdigest())]
            if self.complete and not any(m.key == key for m in list(self.report.mismatches)):
                self._mismatch(
                    uses[0].file, uses[0].tensor, key, "the ranks' pieces are not the whole tensor"
                )
            return []

        return run

    def _compare(self, key: str, use: _Use, bits: Array, again: Array, start: int) -> None:
        """Compare a piece's entries of a band with it, and put them into ``again``."""
        number = use.piece.target_of(0)
        axis = use.piece.axes[number]
        begin = max(start - axis.first, 0)
        end = min(start + len(bits) - axis.first, axis.size)
        if begin >= end:
            return
        piece = use.piece.with_axis(number, axis.part(begin, end))
        given = use.file.read(use.tensor, use.recipe, piece.axes)
        self.stage.advance(given.nbytes)
        once = given[tuple(slice(None, None, axis.repeat) for axis in piece.axes)]
        box = piece.source_box()
        place = ((box[0][0] - start, box[0][1] - start), *box[1:])
        own = tuple(slice(*bounds) for bounds in place)
        again[own] = _as_source(once, piece.axes)
        if not np.array_equal(given, _as_target(bits[own], piece.axes)):
            self._mismatch(use.file, use.tensor, key, f"{_which(given, bits[own], piece.axes, box)} differ")


def _collect(uses: dict[str, list[_Use]], use: _Use, run: Run) -> None:
    for piece in run.pieces:
        for row in range(len(run.keys)):
            placed = piece
            if run.lead >= 0:
                placed = piece.with_axis(run.lead, Axis(-1, 0, 1, run.start + row))
            key = run.key(piece, row)
            uses.setdefault(key, []).append(use._replace(piece=placed))


def _as_source(given: Array, axes: Sequence[Axis]) -> Array:
    """A box of a rank's tensor with the axes of the checkpoint tensor, in its order."""
    inner = given.reshape([axis.size for axis in axes if axis.source >= 0])
    order = [axis.source for axis in axes if axis.source >= 0]
    return inner.transpose(np.argsort(order))


def _as_target(own: Array, axes: Sequence[Axis]) -> Array:
    """A box of a checkpoint tensor as it stands in the rank's tensor."""
    turned = own.transpose([axis.source for axis in axes if axis.source >= 0])
    wide = turned.reshape([axis.size if axis.source >= 0 else 1 for axis in axes])
    for number, axis in enumerate(axes):
        if axis.repeat > 1:
            wide = np.repeat(wide, axis.repeat, axis=number)
    return wide


def _which(given: Array, own: Array, axes: Sequence[Axis], box: Box) -> str:
    """The first row of the checkpoint tensor that differs."""
    different = given != _as_target(own, axes)
    number = next(n for n, axis in enumerate(axes) if axis.source == 0)
    rows = np.flatnonzero(different.any(tuple(n for n in range(different.ndim) if n != number)))
    first = box[0][0] + int(rows[0]) // axes[number].repeat
    return f"{int(different.sum())} entries, from row {first} on,"
