"""Bad numbers among stored weights, found by their codes: faster than asking whether a number is finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from mm2c_runtime.weights.dtypes import NUMPY

# Per dtype: unsigned view, mask that drops the sign, and the first code that is no finite number.
_CODES: dict[np.dtype[Any], tuple[type[Any], int, int]] = {
    NUMPY["e4m3"]: (np.uint8, 0x7F, 0x7F),
    NUMPY["bf16"]: (np.uint16, 0x7FFF, 0x7F80),
    NUMPY["f16"]: (np.uint16, 0x7FFF, 0x7C00),
    NUMPY["f32"]: (np.uint32, 0x7FFFFFFF, 0x7F800000),
}
_WINDOW = 1 << 18  # elements looked at together: stays in the cache of a core


def first_bad(rows: np.ndarray[Any, Any]) -> int | None:
    """Place of the first NaN or infinity among the elements of a C-contiguous array; None where there is none."""
    unsigned, mask, limit = _CODES[rows.dtype]
    codes = rows.reshape(-1).view(unsigned)
    scratch = np.empty(min(_WINDOW, codes.size), unsigned)
    for start in range(0, codes.size, _WINDOW):
        part = codes[start : start + _WINDOW]
        window = np.bitwise_and(part, unsigned(mask), out=scratch[: part.size])
        if window.max() >= limit:
            return start + int(np.argmax(window >= limit))
    return None
