"""The version, and a digest of the compiler's own source: what decides whether a cached stage still holds."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

__version__ = "0.1.0"


@cache
def source_digest() -> str:
    """sha256 over every Python file of the compiler and of the runtime that bundles carry.

    A stage made by other code is never reused, also while working on the compiler itself.
    """
    import mm2c_runtime

    digest = hashlib.sha256(__version__.encode())
    for root in (Path(__file__).parent, Path(str(mm2c_runtime.__file__)).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
