"""Serves bundles of mm2c: ``mm2c_runtime.Bundle.load(folder).generate(messages, tools=…)``.

``Bundle`` and the answer types are imported on first use, so that ``mm2c_runtime.manifest`` and its like
stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm2c_runtime.bundle import Bundle
    from mm2c_runtime.completion import Completion, CompletionDelta
    from mm2c_runtime.errors import BundleError, RequestError

__all__ = ["Bundle", "BundleError", "Completion", "CompletionDelta", "RequestError"]

_HOME = {
    "Bundle": "bundle",
    "BundleError": "errors",
    "Completion": "completion",
    "CompletionDelta": "completion",
    "RequestError": "errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mm2c_runtime.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mm2c_runtime' has no attribute {name!r}")
