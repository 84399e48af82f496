"""The four stored element types and their numpy and safetensors names."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

NUMPY: dict[str, np.dtype[Any]] = {
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
}
SAFETENSORS: dict[str, str] = {"e4m3": "F8_E4M3", "bf16": "BF16", "f16": "F16", "f32": "F32"}
FROM_SAFETENSORS: dict[str, str] = {name: dtype for dtype, name in SAFETENSORS.items()}

# All 256 codes of float8_e4m3fn as f32: a table look-up is the fastest exact widening that numpy has.
E4M3_VALUES = np.arange(256, dtype=np.uint8).view(NUMPY["e4m3"]).astype(np.float32)


def widen(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Any stored type to f32, exactly."""
    if array.dtype == NUMPY["e4m3"]:
        return E4M3_VALUES[array.view(np.uint8)]
    return array.astype(np.float32, copy=False)
