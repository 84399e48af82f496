"""The one-pass repacker: a checkpoint in, every rank's safetensors files out, in bounded memory.

Threads take units (the pieces of all files that want the same part of the checkpoint) in order: read, check, copy to
the files' chunks, and whoever completes a chunk hashes and writes it. Another thread syncs what was written and tells
the journal. Units and chunks are in flight for a few units' length only, which bounds the memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from rich.filesize import decimal

from mm2c.errors import UserError
from mm2c.progress import Bytes, Progress, Quiet
from mm2c.weights.commit import Commits
from mm2c.weights.journal import Build, Claims, Journal, read_claims
from mm2c.weights.layout import FileLayout, WeightJob, lay_out, shared_order
from mm2c.weights.outputs import Assembly, Output, WrittenWeights, write_error
from mm2c.weights.plan import Plan
from mm2c.weights.shards import Shards, Stamp, TensorFiles, stamps_of
from mm2c.weights.sources import Sources, Unshared
from mm2c.weights.units import run_units
from mm2c_runtime.checksums import CHUNK, chunk_digests

DIRECT = 256 << 20  # bytes of all files: more goes past the page cache, whose pages cost more than the disk

__all__ = ["Repack", "WrittenWeights", "check_space", "write_all"]


def write_all(
    jobs: Sequence[WeightJob],
    checkpoint: TensorFiles,
    progress: Progress | None = None,
    *,
    journal: Path | None = None,
    key: str = "",
    stamps: Mapping[str, Stamp] | None = None,
) -> list[WrittenWeights]:
    """Write the files of all ranks and lowerings in one pass over the checkpoint.

    Each file is valid safetensors, its tensors 64-byte aligned where their sizes allow. ``journal``: what is on the
    disk is noted there under ``key``, and what a killed build of the same key noted is checked and kept.
    ``stamps``: what the checkpoint's files were when it was opened (None: what they are now).

    Raises:
        UserError: the disk cannot hold the files (before writing), is full, a weight is NaN or infinite, or the
            checkpoint changed; the files and the journal are removed then.
    """
    return Repack(jobs, checkpoint, progress, journal=journal, key=key, stamps=stamps).run()


class Repack:
    """``write_all`` with its figures: ``bytes_read`` of the checkpoint, ``buffers`` of CHUNK bytes that were made,
    ``resumed`` bytes that an earlier build had written."""

    def __init__(
        self,
        jobs: Sequence[WeightJob],
        checkpoint: TensorFiles,
        progress: Progress | None = None,
        *,
        journal: Path | None = None,
        key: str = "",
        stamps: Mapping[str, Stamp] | None = None,
    ) -> None:
        self.jobs, self.checkpoint = jobs, checkpoint
        self.progress: Progress = progress or Quiet()
        self.order = shared_order(jobs)
        self.layouts = lay_out(jobs, self.order)
        self.stamps = dict(stamps_of(checkpoint) if stamps is None else stamps)
        self.journal = journal
        files = tuple(
            (_name(job, journal), layout.size) for job, layout in zip(jobs, self.layouts, strict=True)
        )
        self.build = Build(key, files, CHUNK, self.stamps)
        self.bytes_read = self.buffers = self.resumed = 0

    def run(self) -> list[WrittenWeights]:
        outputs: list[Output] = []
        try:
            claims = read_claims(self.journal, self.build) if self.journal else None
            kept = self._kept(claims) if claims else [{} for _ in self.jobs]
            if not any(kept):
                claims = None
            check_space(self.jobs, self.layouts, kept=[bool(chunks) for chunks in kept])
            total = sum(layout.size for layout in self.layouts)
            for job, layout, chunks in zip(self.jobs, self.layouts, kept, strict=True):
                outputs.append(Output(job.path, layout, chunks, direct=total > DIRECT))
            journal = Journal(self.journal, self.build, claims) if self.journal else None
            try:
                self._write(outputs, journal)
            finally:
                if journal:
                    journal.close()
            return [output.finish() for output in outputs]
        except BaseException as error:
            for output in outputs:
                output.discard()
            if self.journal:  # also of an earlier build's files, where they were not opened yet
                for path in (*(job.path for job in self.jobs), self.journal):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise write_error(error, self.journal or self.jobs[0].path) from error
            raise

    def _kept(self, claims: Claims) -> list[dict[int, bytes]]:
        """By file, the chunks whose bytes are what the journal claims."""
        for name, stamp in self.stamps.items():
            if claims.stamps.get(name) != stamp:
                raise UserError(
                    f"shard {name} changed since the interrupted build began; nothing of that build was kept",
                    where=str(self.checkpoint.folder),
                    remedy="run the same command again to build from what is there now",
                )
        kept: list[dict[int, bytes]] = [{} for _ in self.jobs]
        work = []
        for (file, chunk), digest in sorted(claims.digests.items()):
            path, size = self.jobs[file].path, self.layouts[file].size
            if path.is_file() and path.stat().st_size == size:
                work.append((path, chunk * CHUNK, min(CHUNK, size - chunk * CHUNK), (file, chunk, digest)))
        total = sum(size for _, _, size, _ in work)
        with (
            self.progress.stage("Checking what an interrupted build wrote", Bytes(total)) as bar,
            suppress(OSError, EOFError),  # what cannot be read is written again
        ):
            for found, size, (file, chunk, digest) in chunk_digests(work):
                if found == digest:
                    kept[file][chunk] = digest
                    self.resumed += size
                bar.advance(size)
        return kept

    def _write(self, outputs: list[Output], journal: Journal | None) -> None:
        total = sum(layout.size for layout in self.layouts)
        if self.resumed:
            self.progress.note(
                f"resuming an interrupted build: {decimal(self.resumed)} of {decimal(total)} of the weights are "
                "written and whole"
            )
        shards = Shards(self.checkpoint.folder, self.stamps)
        try:
            assembly = Assembly(outputs)
            tensors = self.checkpoint.tensors
            plan = Plan(self.jobs, self.layouts, self.order, tensors, assembly.wanted)
            sources = Sources(tensors, shards)
            with (
                self.progress.stage("Writing weights", Bytes(total - self.resumed)) as stage,
                Commits(outputs, journal, shards, stage) as commits,
            ):
                for file, layout in enumerate(self.layouts):
                    if assembly.wanted(file, 0, len(layout.header)):
                        header = np.frombuffer(layout.header, np.uint8)
                        commits.write(file, assembly.copy(file, 0, header), assembly)
                run_units(plan, assembly, sources, Unshared(tensors, shards), commits)
            shards.check()
            self.bytes_read, self.buffers = shards.bytes_read, assembly.buffers
        finally:
            shards.close()


def check_space(
    jobs: Sequence[WeightJob], layouts: Sequence[FileLayout], kept: Sequence[bool] | None = None
) -> None:
    """UserError where a file system has too little room for the files that go to it. ``kept``: the file that is
    there is gone on with, and what it takes already is not needed again."""
    needed: dict[int, int] = {}
    folder: dict[int, Path] = {}
    for number, (job, layout) in enumerate(zip(jobs, layouts, strict=True)):
        device = job.path.parent.stat().st_dev
        has = min(job.path.stat().st_blocks * 512, layout.size) if kept and kept[number] else 0
        needed[device] = needed.get(device, 0) + layout.size - has
        folder[device] = job.path.parent
    for device, size in needed.items():
        status = os.statvfs(folder[device])
        free = status.f_bavail * status.f_frsize
        if size > free:
            what = f"not enough disk space: the weights need {decimal(size)}, {decimal(free)} are free"
            remedy = f"free {decimal(size - free)}, or write to another disk with -o"
            raise UserError(what, where=str(folder[device]), remedy=remedy)


def _name(job: WeightJob, journal: Path | None) -> str:
    """The file's path from the journal's folder: a stage is renamed when it is adopted."""
    return os.path.relpath(job.path, journal.parent) if journal else job.path.name
