"""Is the bundle that stands at the output already what a build would make?"""

from __future__ import annotations

from pathlib import Path

from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest_file import read_bundle


def is_fresh(output: Path, key: str) -> bool:
    """Same build key, and every file there with its size. Altered, foreign or absent: False."""
    if not output.is_dir():
        return False
    try:
        return read_bundle(output, checksums=False).build_key == key
    except BundleError:
        return False
