"""How plans are built: flags by library. All of them are part of a plan's cache key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# TensorRT-RTX: nothing is timed while building, so optimisation levels, tactic counts, tiling and threads change
# neither the plan (the same bytes) nor the seconds; they are left alone. The runtime gives every plan its scratch
# memory itself and records CUDA graphs, and the flag has the builder refuse what would allocate behind its back.
RTX_FLAGS = ("REQUIRE_USER_ALLOCATION",)
# TensorRT 11: what plugins write in place is bound to the memory that they read.
PREVIEW = ("ALIASED_PLUGIN_IO_10_03",)


def described(engine: str) -> dict[str, Any]:
    """The settings as JSON-able values, for cache keys."""
    own = {"flags": RTX_FLAGS} if engine == "tensorrt-rtx" else {"preview": PREVIEW}
    return {**own, "profiling_verbosity": "DETAILED"}


def configure(trt: Any, config: Any, engine: str, target: Sequence[str]) -> None:
    """Set ``config`` (IBuilderConfig of module ``trt``) up. ``target``: compute capabilities ("12.0") to build for;
    empty: what the library itself takes for its own.

    Raises:
        ValueError: the library does not have a compute capability.
    """
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what `mm2c inspect --engine` shows
    if engine == "tensorrt-rtx":
        for flag in RTX_FLAGS:
            config.set_flag(getattr(trt.BuilderFlag, flag))
        _set_target(trt, config, target)
        return
    for feature in PREVIEW:
        config.set_preview_feature(getattr(trt.PreviewFeature, feature), True)


def _set_target(trt: Any, config: Any, target: Sequence[str]) -> None:
    if not target:
        return
    config.num_compute_capabilities = len(target)
    for index, capability in enumerate(target):
        known = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if known is None or not config.set_compute_capability(known, index):
            raise ValueError(f"compute capability {capability}")
