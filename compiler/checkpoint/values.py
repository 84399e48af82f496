"""Bad numbers among the scales, all of which are read before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mm2c.checkpoint.names import SCALE_SUFFIX
from mm2c.errors import UserError
from mm2c.weights.finite import DAMAGED

if TYPE_CHECKING:
    from mm2c.checkpoint.reader import Checkpoint


def validate_values(checkpoint: Checkpoint) -> None:
    """Read every scale tensor. UserError names the first that holds NaN, an infinity, zero or less."""
    for name, info in checkpoint.tensors.items():
        if not name.endswith(SCALE_SUFFIX):
            continue
        scale = checkpoint.read_rows(name, 0, info.shape[0])
        good = np.isfinite(scale) & (scale > 0)
        if not good.all():
            place = tuple(int(i) for i in np.argwhere(~good)[0])
            what = f"{name}{list(place)} is {scale[place]}; a scale is a finite number above 0"
            raise UserError(what, where=str(checkpoint.folder / info.file), remedy=DAMAGED)
