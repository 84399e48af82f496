"""Is the bundle that stands at the output already what a build would make?"""

from __future__ import annotations

from pathlib import Path

from mm2c_runtime.checksums import check_contents
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest_file import read_bundle


def difference_of(output: Path, key: str) -> str:
    """Empty where the bundle has this build key and every file its sha256; else what is different.

    Hashes are remembered by size, times and inode, so that a bundle of 230 GB is read through once.
    """
    try:
        manifest = read_bundle(output, checksums=False)
        if manifest.build_key != key:  # asked before every file is read through
            return "of another checkpoint, other options or another mm2c"
        check_contents(output, manifest.files)
    except BundleError as error:
        return error.what
    return ""
