"""Whether the engine's comparison with the golden vectors can be made as asked, known before a server starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mm2c_runtime.selfcheck import require_golden, self_check_mode

if TYPE_CHECKING:
    from mm2c_runtime.manifest import Manifest


def served_self_check(bundle: Path, manifest: Manifest, asked: str | None) -> str | None:
    """``asked`` as it is, for the engine; None leaves it to ``$MM2C_SELF_CHECK`` and the engine's default.

    Raises:
        BundleError: another word than always, first or never, there or in the variable; or "always" for a bundle that
            has no golden vectors.
    """
    if self_check_mode(asked, gpu=manifest.engine != "onnxruntime") == "always":
        require_golden(bundle)
    return asked
