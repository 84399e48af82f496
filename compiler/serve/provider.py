"""ONNX Runtime's execution provider of a served bundle, and whether it can run here, known before a server starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mm2c_runtime.executors.provider import LOWERINGS, asked_provider, check_machine

if TYPE_CHECKING:
    from mm2c_runtime.manifest import Manifest


def served_provider(bundle: Path, manifest: Manifest, asked: str | None) -> str | None:
    """``asked`` as it is, for the engine; None leaves it to ``$MM2C_PROVIDER`` and the engine's default, the CPU.

    Raises:
        BundleError: a word that is no provider, a bundle of another engine or without programs for that provider, or a
            machine that lacks the ONNX Runtime, the driver or the GPUs for it.
    """
    provider = asked_provider(asked, engine=manifest.engine)
    if provider == "cuda":
        from mm2c_runtime.executors.lowering import checked_lowering

        ranks = len(checked_lowering(bundle, manifest, LOWERINGS[provider]).ranks)
        check_machine(ranks * manifest.mapping.replicas)
    return asked
