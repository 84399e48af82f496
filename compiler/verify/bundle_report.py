"""Reports that are added to a bundle after its build: the manifest names them, and stays sealed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mm2c.errors import UserError
from mm2c_runtime.checksums import CHUNK, chunk_of
from mm2c_runtime.manifest import FileEntry, Manifest
from mm2c_runtime.manifest_file import read_manifest


def check_writable(bundle: Path) -> None:
    """UserError where nothing can be written into the bundle: before hours of work, not after."""
    try:
        (bundle / "report").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=bundle / "report"), tempfile.TemporaryFile(dir=bundle):
            pass
    except OSError as error:
        raise UserError(
            f"the golden vectors cannot be written into the bundle: {error.strerror}",
            where=str(bundle),
            remedy="verify with --no-write, or make the bundle writable",
        ) from error


def add_reports(bundle: Path, reports: Mapping[str, bytes]) -> bool:
    """Write ``reports`` by path in the bundle, and name them in the manifest. False where they all are there already.

    The bundle is valid at any moment: a report that changes is first taken out of the manifest, and put back once it
    is in its place. The build key stays.
    """
    manifest = read_manifest(bundle)
    entries = {name: _entry(content) for name, content in reports.items()}
    fresh = [
        name
        for name, entry in entries.items()
        if manifest.files.get(name) != entry or not _holds(bundle / name, reports[name])
    ]
    if not fresh:
        return False
    try:
        if known := {name for name in fresh if name in manifest.files}:
            manifest = _resealed(manifest, {n: e for n, e in manifest.files.items() if n not in known})
            _replace(bundle / "manifest.json", manifest.model_dump_json(indent=1).encode())
        for name in fresh:
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            _replace(bundle / name, reports[name])
        manifest = _resealed(manifest, dict(sorted({**manifest.files, **entries}.items())))
        _replace(bundle / "manifest.json", manifest.model_dump_json(indent=1).encode())
    except OSError as error:
        raise UserError(
            f"a report cannot be written into the bundle: {error.strerror}",
            where=error.filename or str(bundle),
            remedy="make room and the bundle writable, or verify with --no-write",
        ) from error
    return True


def _resealed(manifest: Manifest, files: dict[str, FileEntry]) -> Manifest:
    return manifest.model_copy(update={"files": files}).sealed()


def _entry(content: bytes) -> FileEntry:
    """As the build would name the file."""
    chunk = chunk_of(len(content))
    if not chunk:
        return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    digests = b"".join(
        hashlib.sha256(content[start : start + CHUNK]).digest() for start in range(0, len(content), CHUNK)
    )
    return FileEntry(sha256=hashlib.sha256(digests).hexdigest(), bytes=len(content), chunk=chunk)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _replace(path: Path, content: bytes) -> None:
    """All of the content or none, also where the power fails."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
