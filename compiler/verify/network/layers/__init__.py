"""Evaluators by layer kind. ``LAYERS`` holds every kind that a replay knows; importing a module adds its own."""

from mm2c.verify.network.layers import (
    attention,
    caches,
    collective,
    conversion,
    elementwise,
    gather,
    product,
    quantization,
    reduction,
    rotary,
    scatter,
    shapes,
    slices,
    sources,
    unary,
)
from mm2c.verify.network.layers.registry import LAYERS

__all__ = [
    "LAYERS",
    "attention",
    "caches",
    "collective",
    "conversion",
    "elementwise",
    "gather",
    "product",
    "quantization",
    "reduction",
    "rotary",
    "scatter",
    "shapes",
    "slices",
    "sources",
    "unary",
]
