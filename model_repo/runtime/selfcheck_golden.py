"""Golden vectors: what the reference answered to a few rows of tokens, kept in the bundle.

``report/golden.safetensors`` holds, for each row i:

- ``row{i}.ids`` i64[tokens]: the prompt and what follows it
- ``row{i}.logits`` f32[tokens - prompt + 1, vocab]: behind the prompt's last token and each one after it
- ``row{i}.positions`` i64[P] with ``row{i}.hidden`` f32[layers + 1, P, hidden]: the embedding, then each layer's output
- ``row{i}.measured`` f32[tokens - prompt + 1]: how far the same arithmetic in 16 bits was from these logits, in parts
  of the largest of them; -1 where that was not measured

Its metadata is one JSON document.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import BundleError

GOLDEN = "report/golden.safetensors"
FORMAT = 1
KEY = "mm2c.golden"  # of the metadata
ROUNDING = 1e-5  # of the largest value: sums in another order
_AGAIN = "write it again with `mm2c verify BUNDLE`, where the checkpoint and transformers are"


@dataclass(frozen=True)
class GoldenRow:
    """The first ``prompt`` of ``ids`` are prefilled, the others decoded. ``hidden`` and ``positions`` may be empty."""

    ids: tuple[int, ...]
    prompt: int
    logits: NDArray[np.float32]
    measured: NDArray[np.float32]
    positions: NDArray[np.int64]
    hidden: NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """``about``: reference and library versions, the checkpoint's identity, tolerances."""

    rows: tuple[GoldenRow, ...]
    about: dict[str, Any]

    def agrees(self, other: Golden) -> bool:
        """Whether both are of one reference, and its values the same but for rounding."""
        if self.about | other.about != self.about or len(self.rows) != len(other.rows):
            return False
        for one, two in zip(self.rows, other.rows, strict=True):
            if (one.ids, one.prompt) != (two.ids, two.prompt):
                return False
            if not np.array_equal(one.positions, two.positions) or one.hidden.shape != two.hidden.shape:
                return False
            for a, b in ((one.logits, two.logits), (one.hidden, two.hidden)):
                if a.size and float(np.abs(a - b).max()) > ROUNDING * float(np.abs(a).max()):
                    return False
            if not np.allclose(one.measured, two.measured, rtol=0.5, atol=1e-4):
                return False
        return True

    def to_bytes(self) -> bytes:
        """The file's content; equal values, equal bytes."""
        from safetensors.numpy import save

        tensors: dict[str, Any] = {}
        for index, row in enumerate(self.rows):
            tensors[f"row{index}.ids"] = np.array(row.ids, np.int64)
            for name in ("logits", "measured", "positions", "hidden"):
                tensors[f"row{index}.{name}"] = np.ascontiguousarray(getattr(row, name))
        about = {**self.about, "format": FORMAT, "prompts": [row.prompt for row in self.rows]}
        return bytes(save(tensors, {KEY: json.dumps(about, sort_keys=True)}))


def read_golden(bundle: Path) -> Golden | None:
    """None where the bundle has none. Raises BundleError for a file that is not what it should be."""
    path = bundle / GOLDEN
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {})[KEY])
            if about["format"] != FORMAT:
                raise ValueError(f"it has format {about['format']}, this runtime reads {FORMAT}")
            rows = tuple(_row(file, index, prompt) for index, prompt in enumerate(about["prompts"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BundleError(
            f"the golden vectors cannot be read: {error}", where=str(path), remedy=_AGAIN
        ) from None
    return Golden(rows, about)


def _row(file: Any, index: int, prompt: int) -> GoldenRow:
    get = {
        name: file.get_tensor(f"row{index}.{name}")
        for name in ("ids", "logits", "measured", "positions", "hidden")
    }
    ids, logits = get["ids"], get["logits"]
    if not 1 <= prompt <= len(ids) or logits.ndim != 2 or len(logits) != len(ids) - prompt + 1:
        raise ValueError(
            f"row {index} has {len(ids)} tokens, {prompt} of them prompt, and logits of {logits.shape}"
        )
    return GoldenRow(tuple(ids.tolist()), prompt, logits, get["measured"], get["positions"], get["hidden"])
