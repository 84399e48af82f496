"""Stages cached by content in the user's cache folder: a key names everything that decides the result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c.bundle.checksums import sha256_of

# Cached files are hard links of the bundle's where the file system allows, but outlive the bundle: keep them small.
DEFAULT_LIMIT = 2 << 30  # bytes of one entry
SEAL = ".sha256.json"  # written last: an entry without it is not whole


def cache_root() -> Path:
    """``$MM2C_CACHE``, else ``$XDG_CACHE_HOME/mm2c``, else ``~/.cache/mm2c``."""
    if own := os.environ.get("MM2C_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mm2c"


def key_of(value: Any) -> str:
    """Key of a JSON-able value: equal values, equal keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@dataclass(frozen=True)
class StageCache:
    """Folders by stage and key. ``enabled`` False neither reads nor writes (``--no-cache``)."""

    root: Path
    enabled: bool = True
    limit: int = DEFAULT_LIMIT

    def fetch(self, stage: str, key: str, target: Path) -> dict[str, str] | None:
        """Lay the cached files out under ``target`` (hard links, else copies).

        Returns their sha256 by name, or None where there is no such entry, or one whose files were altered since
        (a bundle's files may be its hard links): that entry is dropped.
        """
        entry = self.root / stage / key
        if not self.enabled or not (entry / SEAL).is_file():
            return None
        known: dict[str, str] = json.loads((entry / SEAL).read_text())
        if any(not (entry / n).is_file() or sha256_of(entry / n) != sha for n, sha in known.items()):
            shutil.rmtree(entry, ignore_errors=True)
            return None
        for name in known:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            _link(str(entry / name), str(target / name))
        return known

    def store(self, stage: str, key: str, source: Path, names: list[str]) -> bool:
        """Keep ``names`` (paths relative to ``source``). False where they exceed the limit or cannot be kept:
        a cache that fails never fails the build."""
        if not self.enabled or sum((source / n).stat().st_size for n in names) > self.limit:
            return False
        entry = self.root / stage / key
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=entry.parent))
            try:
                for name in names:
                    place = part / name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    _link(str(source / name), str(place))
                known = {name: sha256_of(part / name) for name in names}
                (part / SEAL).write_text(json.dumps(known))
                if entry.exists():
                    shutil.rmtree(entry, ignore_errors=True)
                os.replace(part, entry)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        except OSError:
            return False
        return True
