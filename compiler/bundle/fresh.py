"""Is the bundle that stands at the output already what a build would make?"""

from __future__ import annotations

from pathlib import Path

from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest_file import read_bundle


def difference_of(output: Path, key: str) -> str:
    """Empty where the bundle has this build key and every file its sha256; else what is different.

    Hashes are remembered by size, times and inode, so that a bundle of 230 GB is read through once.
    """
    try:
        manifest = read_bundle(output)
    except BundleError as error:
        return error.what
    return "" if manifest.build_key == key else "of another checkpoint, other options or another mm2c"
