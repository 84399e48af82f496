"""Bad numbers among the weights, found while they are being read for repacking."""

from __future__ import annotations

from typing import Any

import numpy as np

from mm2c.errors import UserError
from mm2c_runtime.weights.dtypes import NUMPY

Array = np.ndarray[Any, Any]
DAMAGED = "the file is damaged or was badly converted: download or convert it again"
# Per dtype: its codes as signed and as unsigned integers, and the first positive and the first negative code that is
# no finite number. Codes that are not finite are the largest of their sign, so two maxima tell: the signed one of
# the positive codes, the unsigned one of the negative codes. Nothing is copied or masked.
_CODES: dict[np.dtype[Any], tuple[type[Any], type[Any], int, int]] = {
    NUMPY["e4m3"]: (np.int8, np.uint8, 0x7F, 0xFF),
    NUMPY["bf16"]: (np.int16, np.uint16, 0x7F80, 0xFF80),
    NUMPY["f16"]: (np.int16, np.uint16, 0x7C00, 0xFC00),
    NUMPY["f32"]: (np.int32, np.uint32, 0x7F800000, 0xFF800000),
}
_WINDOW = 1 << 18  # bytes looked at twice: they stay in the cache of a core


def require_finite(name: str, rows: Array, first_row: int = 0, *, file: str = "") -> None:
    """UserError where ``rows``, read from row ``first_row`` of the tensor on, hold NaN or an infinity.

    ``file``: where the tensor lies.
    """
    signed, unsigned, positive, negative = _CODES[rows.dtype]
    codes = rows.reshape(-1).view(unsigned)
    step = _WINDOW // rows.itemsize
    for start in range(0, codes.size, step):
        window = codes[start : start + step]
        if window.max() < negative and window.view(signed).max() < positive:
            continue
        bad = (window >= negative) | (window.view(signed) >= positive)
        index = start + int(np.argmax(bad))
        place = [int(i) for i in np.unravel_index(index, rows.shape)]
        place[0] += first_row
        raise UserError(
            f"{name}{place} is {rows.reshape(-1)[index]}: weights are finite numbers",
            where=file,
            remedy=DAMAGED,
        )
