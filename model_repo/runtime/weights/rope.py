"""Rotary tables as transformers computes them: f32 frequencies, f32 angles, scaled cos and sin.

Each formula follows ``transformers.modeling_rope_utils`` step by step, in f32 where it is in f32 there.
Powers and waves are taken in f64 and rounded: that is what torch gives but for a rare last bit, and the same
on every machine, where numpy's own f32 functions are neither. ``args`` of a ``Computed`` recipe are the
parameters here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

F32 = np.float32
Array = np.ndarray[Any, Any]


def _powers(args: Mapping[str, Any]) -> Array:
    """theta ** (2i / rotary_dim) for i < rotary_dim / 2, f32."""
    dim = int(args["rotary_dim"])
    exponents = np.arange(0, dim, 2, dtype=F32) / F32(dim)
    return np.power(float(args["theta"]), exponents.astype(np.float64)).astype(F32)


def _default(args: Mapping[str, Any]) -> tuple[Array, float]:
    return F32(1.0) / _powers(args), 1.0


def _linear(args: Mapping[str, Any]) -> tuple[Array, float]:
    return F32(1.0) / _powers(args) / F32(args["factor"]), 1.0


def _llama3(args: Mapping[str, Any]) -> tuple[Array, float]:
    """Llama 3.1: long wavelengths are divided by ``factor``, short ones kept, those between blended."""
    frequency = F32(1.0) / _powers(args)
    factor, low, high = (F32(args[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = F32(args["original_max_position_embeddings"])
    wavelength = F32(2 * math.pi) / frequency
    long = wavelength > original / low
    scaled = np.where(long, frequency / factor, frequency)
    blend = (original / wavelength - low) / (high - low)
    blended = (F32(1.0) - blend) * scaled / factor + blend * scaled
    between = ~(wavelength < original / high) & ~long
    return np.where(between, blended, scaled).astype(F32), 1.0


def _yarn_magnitude(scale: float, weight: float = 1.0) -> float:
    return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0


def _yarn(args: Mapping[str, Any]) -> tuple[Array, float]:
    """YaRN (arXiv 2309.00071): a ramp over the dimensions between interpolation and extrapolation."""
    dim, theta, factor = int(args["rotary_dim"]), float(args["theta"]), float(args["factor"])
    original = float(args["original_max_position_embeddings"])
    attention = args.get("attention_factor")
    if attention is None:
        weight, all_dim = args.get("mscale"), args.get("mscale_all_dim")
        if weight and all_dim:
            attention = _yarn_magnitude(factor, weight) / _yarn_magnitude(factor, all_dim)
        else:
            attention = _yarn_magnitude(factor)

    def dimension(rotations: float) -> float:
        return (dim * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(theta))

    low, high = dimension(args.get("beta_fast") or 32), dimension(args.get("beta_slow") or 1)
    if args.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=F32) - F32(low)) / F32(high - low), F32(0), F32(1))
    powers = _powers(args)
    kept = F32(1) - ramp
    frequency = F32(1.0) / (F32(factor) * powers) * (F32(1) - kept) + F32(1.0) / powers * kept
    return frequency.astype(F32), float(attention)


FREQUENCIES: dict[str, Callable[[Mapping[str, Any]], tuple[Array, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def frequencies(args: Mapping[str, Any]) -> tuple[Array, float]:
    """Inverse frequencies f32[rotary_dim / 2] and the factor on cos and sin.

    ``args``: ``theta``, ``rotary_dim``, and the keys of the scaling with ``rope_type`` (absent: default).
    """
    return FREQUENCIES[str(args.get("rope_type", "default"))](args)


def table(kind: str, args: Mapping[str, Any], start: int, stop: int) -> Array:
    """Rows ``start`` to ``stop`` of ``rope_cos`` or ``rope_sin``: f32[stop - start, rotary_dim / 2]."""
    frequency, attention = frequencies(args)
    # positions as f32, as the reference has them: exact below 2**24
    angles = (np.arange(start, stop, dtype=F32)[:, None] * frequency[None, :]).astype(np.float64)
    wave = np.cos(angles) if kind == "rope_cos" else np.sin(angles)
    scaled: Array = wave.astype(F32) * F32(attention)
    return scaled
