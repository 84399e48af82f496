"""Bad numbers among the weights, found while they are being read for repacking."""

from __future__ import annotations

from typing import Any

import numpy as np

from mm2c.errors import UserError
from mm2c_runtime.weights.dtypes import NUMPY

Array = np.ndarray[Any, Any]
DAMAGED = "the file is damaged or was badly converted: download or convert it again"
# Per dtype: unsigned view, mask that drops the sign, and the first code that is no finite number.
_CODES: dict[np.dtype[Any], tuple[type[Any], int, int]] = {
    NUMPY["e4m3"]: (np.uint8, 0x7F, 0x7F),
    NUMPY["bf16"]: (np.uint16, 0x7FFF, 0x7F80),
    NUMPY["f16"]: (np.uint16, 0x7FFF, 0x7C00),
    NUMPY["f32"]: (np.uint32, 0x7FFFFFFF, 0x7F800000),
}
_WINDOW = 1 << 18  # elements looked at together: stays in the cache of a core


def require_finite(name: str, rows: Array, first_row: int = 0, *, file: str = "") -> None:
    """UserError where ``rows``, read from row ``first_row`` of the tensor on, hold NaN or an infinity.

    ``file``: where the tensor lies.
    """
    unsigned, mask, limit = _CODES[rows.dtype]
    codes = rows.reshape(-1).view(unsigned)
    for start in range(0, codes.size, _WINDOW):
        window = codes[start : start + _WINDOW] & unsigned(mask)
        if window.max() < limit:
            continue
        index = start + int(np.argmax(window >= limit))
        place = [int(i) for i in np.unravel_index(index, rows.shape)]
        place[0] += first_row
        raise UserError(
            f"{name}{place} is {rows.reshape(-1)[index]}: weights are finite numbers",
            where=file,
            remedy=DAMAGED,
        )
