"""`mm2c build --finish BUNDLE`: the plans that a build left to this machine, and the manifest that then names them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mm2c.bundle.cache import StageCache, cache_root
from mm2c.bundle.checksums import sha256_of
from mm2c.engine.tensorrt.build import build_program
from mm2c.engine.tensorrt.library import NAMES, Library, find_library
from mm2c.engine.tensorrt.preflight import check_finishing, check_plugins
from mm2c.errors import UserError
from mm2c.progress import Progress, Quiet
from mm2c_runtime.checksums import check_contents, check_sizes, chunk_of, remember_contents
from mm2c_runtime.manifest import FileEntry, Manifest
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.manifest_tensorrt import TensorRTProgram

WEIGHTS = ".safetensors"  # hashed when the bundle starts: no plan holds any of them, and they are most of it


@dataclass(frozen=True)
class FinishReport:
    """``target``: compute capabilities that the plans are for. ``made``: whether any was built here, not found in the
    cache. ``bytes``: of all plans."""

    output: Path
    engine: str
    version: str
    target: tuple[str, ...]
    plans: int
    up_to_date: bool
    made: bool = False
    bytes: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}

    def lines(self) -> list[str]:
        """The report for a terminal."""
        of = f"{self.plans} plan(s) of {NAMES[self.engine]} {self.version} for {', '.join(self.target) or 'any GPU'}"
        if self.up_to_date:
            return [f"up to date {self.output}: {of}; nothing was left to build"]
        verb = "built" if self.made else "reused"
        return [
            f"{verb:<9} {of}{'' if self.made else ' (from the cache)'}",
            f"bundle    {self.output} ({self.bytes / 2**20:.1f} MiB of plans, {self.seconds:.1f} s)",
        ]


def finish_bundle(
    bundle: Path, progress: Progress | None = None, *, cache: StageCache | None = None
) -> FinishReport:
    """Build the plans of a bundle that was made with ``--defer-plan``, on the machine that serves it.

    Plans are placed one by one, the manifest is replaced last: until then the bundle is one without plans, and what an
    interrupted run has built comes from the cache in the next one. A bundle with all its plans is left as it is.

    Raises:
        UserError: a bundle of another engine, one that may not be written, or that another process is finishing;
            everything that this machine lacks, in one message; or a plan that cannot be built.
        BundleError: no bundle, or one that was altered after the build.
    """
    began = time.monotonic()
    progress = progress or Quiet()
    manifest = read_manifest(bundle)
    program = _program(bundle, manifest)
    if not program.deferred:
        return _report(bundle, manifest, program, up_to_date=True)
    with _alone(bundle):
        with progress.stage("Checking the bundle and this machine"):
            check_sizes(bundle, manifest.files)
            _check_written(bundle, manifest)
            library, target = _machine(manifest, program)
            if program.plugins is not None:
                graphs = [bundle / plan.graph for plan in program.plans]
                check_plugins(
                    bundle / program.plugins.library, graphs, library, version=program.plugins.version
                )
        kept = cache or StageCache(cache_root())
        context = manifest.limits.context
        built, made = build_program(program, bundle, library, target, kept, progress, context=context)
        sealed = _sealed(bundle, manifest, built, library)
    seconds = time.monotonic() - began
    return _report(bundle, sealed, built, up_to_date=False, made=made, seconds=seconds)


def _program(bundle: Path, manifest: Manifest) -> TensorRTProgram:
    if manifest.tensorrt is None:
        raise UserError(
            f"a bundle of the {manifest.engine} engine has no plans",
            where=str(bundle),
            remedy="it is whole as it is: `mm2c serve`; plans are of --engine tensorrt and tensorrt-rtx",
        )
    return manifest.tensorrt


def _check_written(bundle: Path, manifest: Manifest) -> None:
    """That what plans are made of is what the build wrote. BundleError names a file that is not."""
    own = {name: entry for name, entry in manifest.files.items() if not name.endswith(WEIGHTS)}
    check_contents(bundle, own)


def _machine(manifest: Manifest, program: TensorRTProgram) -> tuple[Library, tuple[str, ...]]:
    """The library, and the compute capabilities to build for; none: those of the GPU that it measures on."""
    if manifest.engine == "tensorrt":
        library, _ = check_finishing(ranks=manifest.mapping.ranks)
        return library, ()
    return find_library(manifest.engine), tuple(program.target)


def _sealed(bundle: Path, manifest: Manifest, program: TensorRTProgram, library: Library) -> Manifest:
    """Write the manifest with the plans in it, over the one without."""
    files = dict(manifest.files)
    for plan in program.plans:
        assert plan.plan is not None
        size = (bundle / plan.plan).stat().st_size
        files[plan.plan] = FileEntry(sha256=sha256_of(bundle / plan.plan), bytes=size, chunk=chunk_of(size))
    changed = {
        "tensorrt": program,
        "libraries": {**manifest.libraries, library.module: library.version},
        "files": dict(sorted(files.items())),
    }
    sealed = manifest.model_copy(update=changed).sealed()
    part = bundle / f".manifest.json-{os.getpid()}"
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(sealed.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, bundle / "manifest.json")
    finally:
        part.unlink(missing_ok=True)
    remember_contents(bundle, {name: files[name] for name in files if not name.endswith(WEIGHTS)})
    return sealed


@contextmanager
def _alone(bundle: Path) -> Iterator[None]:
    """Keep other processes from finishing the same bundle, and see that this one may write there."""
    try:
        folder = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"the bundle cannot be opened: {error.strerror}", where=str(bundle)) from None
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is building the plans of this bundle",
                where=str(bundle),
                remedy="wait for it; what it has built is in the bundle then",
            ) from None
        if not (os.access(bundle, os.W_OK) and os.access(bundle / "plans", os.W_OK)):
            raise UserError(
                "the bundle may not be written",
                where=str(bundle),
                remedy="give yourself the right to write there, or copy the bundle to where you have it",
            )
        yield
    finally:
        os.close(folder)


def _report(
    bundle: Path,
    manifest: Manifest,
    program: TensorRTProgram,
    *,
    up_to_date: bool,
    made: bool = False,
    seconds: float = 0.0,
) -> FinishReport:
    return FinishReport(
        output=bundle,
        engine=manifest.engine,
        version=program.version,
        target=tuple(program.target),
        plans=len(program.plans),
        up_to_date=up_to_date,
        made=made,
        bytes=sum(manifest.files[plan.plan].bytes for plan in program.plans if plan.plan in manifest.files),
        seconds=seconds,
    )
