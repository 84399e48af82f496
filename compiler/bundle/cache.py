"""Stages cached by content in the user's cache folder: a key names everything that decides the result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm2c.bundle.checksums import sha256_of
from mm2c.errors import UserError

# Entries are copies, not links of a bundle's files: whoever alters a bundle in place alters that bundle alone.
ENTRY_LIMIT = 2 << 30  # bytes of one entry
CAPACITY = 20.0  # GB of all entries, where $MM2C_CACHE_GB says nothing
VARIABLE = "MM2C_CACHE_GB"
SEAL = ".sha256.json"  # written last: an entry without it is not whole. Its time is that of the entry's last use.
ABANDONED = 24 * 3600  # seconds after which a half-written entry is taken for a killed build's


def cache_root() -> Path:
    """``$MM2C_CACHE``, else ``$XDG_CACHE_HOME/mm2c``, else ``~/.cache/mm2c``."""
    if own := os.environ.get("MM2C_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mm2c"


def cache_capacity() -> int:
    """Bytes that all entries may take together: ``$MM2C_CACHE_GB``, 0 for no cache.

    Raises:
        UserError: the variable is no number of gigabytes.
    """
    text = os.environ.get(VARIABLE) or str(CAPACITY)
    try:
        gigabytes = float(text)
        if not 0 <= gigabytes < float("inf"):
            raise ValueError
    except ValueError:
        raise UserError(
            f"${VARIABLE} is '{text}', not a number of gigabytes",
            where=f"environment variable {VARIABLE}",
            remedy=f"{VARIABLE}={CAPACITY:g} is the default; 0 caches nothing",
        ) from None
    return int(gigabytes * 1e9)


def key_of(value: Any) -> str:
    """Key of a JSON-able value: equal values, equal keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@dataclass(frozen=True)
class StageCache:
    """Folders by stage and key. ``enabled`` False neither reads nor writes (``--no-cache``).

    ``limit`` is the largest entry and ``capacity`` what all may take, in bytes; beyond it the entries that were
    not used for longest go, never one that this object fetched or stored. Entries appear and disappear by rename,
    so that builds at the same time see whole entries or none; whatever cannot be read is a miss, and a cache that
    fails never fails the build.
    """

    root: Path
    enabled: bool = True
    limit: int = ENTRY_LIMIT
    capacity: int = field(default_factory=cache_capacity)
    _in_use: set[Path] = field(default_factory=set, repr=False, compare=False)

    def fetch(self, stage: str, key: str, target: Path) -> dict[str, str] | None:
        """Lay the cached files out under ``target``.

        Returns their sha256 by name, or None where there is no such entry, or one that is damaged: that entry is
        dropped.
        """
        entry = self.root / stage / key
        if not self._active or not os.path.lexists(entry):
            return None
        try:
            known = _sealed(entry)
        except (OSError, ValueError):
            _drop(entry)
            return None
        laid: list[Path] = []
        try:
            for name in known:
                laid.append(target / name)
                _copy(entry / name, target / name)
        except OSError:  # another build evicted it just now, or the disk is full: the entry is not at fault
            for path in laid:
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(entry / SEAL)
        self._in_use.add(entry)
        return known

    def store(self, stage: str, key: str, source: Path, names: list[str]) -> bool:
        """Keep ``names`` (paths relative to ``source``). False where they exceed a limit or cannot be kept."""
        if not self._active:
            return False
        size = sum((source / name).stat().st_size for name in names)
        if size > min(self.limit, self.capacity):
            return False
        entry = self.root / stage / key
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=entry.parent))
            try:
                for name in names:
                    _copy(source / name, part / name)
                (part / SEAL).write_text(json.dumps({name: sha256_of(part / name) for name in names}))
                _drop(entry)
                # A build that stored the same key meanwhile has the same content: then this rename fails, and
                # its entry stands.
                with suppress(OSError):
                    os.rename(part, entry)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        except OSError:
            return False
        self._in_use.add(entry)
        self.evict()
        return (entry / SEAL).is_file()

    def evict(self) -> None:
        """Drop the least recently used entries until the rest fits, and what killed builds left half-written."""
        entries: list[tuple[float, int, Path]] = []
        for folder in self.root.glob("*/*"):
            with suppress(OSError):
                if folder.name.startswith("."):
                    if time.time() - folder.stat().st_mtime > ABANDONED:
                        shutil.rmtree(folder, ignore_errors=True)
                elif (seal := folder / SEAL).is_file():
                    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                    entries.append((seal.stat().st_mtime, size, folder))
        total = sum(size for _, size, _ in entries)
        for _, size, folder in sorted(entries):
            if total <= self.capacity:
                return
            if folder not in self._in_use:
                _drop(folder)
                total -= size

    @property
    def _active(self) -> bool:
        return self.enabled and self.capacity > 0


def _sealed(entry: Path) -> dict[str, str]:
    """The entry's sha256 by name. OSError or ValueError where it is not whole."""
    known = json.loads((entry / SEAL).read_text(encoding="utf-8"))
    if not isinstance(known, dict):
        raise ValueError("the seal is no object")
    for name, digest in known.items():
        if sha256_of(entry / name) != digest:
            raise ValueError(f"{name} was altered")
    return known


def _drop(entry: Path) -> None:
    """Remove an entry at once for every other build: renamed away first, then deleted."""
    away = entry.parent / f".{entry.name[:12]}-dropped-{os.getpid()}-{time.monotonic_ns()}"
    with suppress(OSError):
        os.rename(entry, away)
        if away.is_dir():
            shutil.rmtree(away, ignore_errors=True)
        else:
            away.unlink()
