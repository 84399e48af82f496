"""Tracing the official transformers module into the dialect. Importing this package imports no torch."""

from __future__ import annotations

from mm2c.trace.graph import trace

__all__ = ["trace"]
