"""The folders /tmp/python_env_XXXXXX of Triton's Python backend, which a killed server leaves behind.

Triton makes one at each start, in /tmp whatever TMPDIR says, and no trace in it tells whose it is. Ours are those
of this user that appeared while our server started. They hold unpacked EXECUTION_ENV_PATH archives; our
models have none, so only an empty folder is ever removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/tmp")
PREFIX = "python_env_"


def environments() -> set[str]:
    """Names of this user's."""
    found = set()
    for entry in FOLDER.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if entry.lstat().st_uid == os.getuid():
                found.add(entry.name)
    return found


def remove_environments(names: Iterable[str]) -> None:
    for name in names:
        if name.startswith(PREFIX) and "/" not in name:
            with suppress(OSError):  # gone already, or not empty: somebody else's
                (FOLDER / name).rmdir()
