"""Golden vectors, collected while the reference computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mm2c.verify.layer_error import LOGITS
from mm2c.verify.script import Piece, Script
from mm2c_runtime.selfcheck_golden import Golden, GoldenRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mm2c_runtime.manifest import Manifest

LIMIT = 64_000_000  # bytes of all golden vectors


class GoldenWriter:
    """Takes a script's reference values as they come: hidden states layer by layer, then logits.

    Rows whose logits do not fit into ``limit`` bytes are left out, the first excepted; hidden states are kept of the
    last positions, as many as then fit.
    """

    def __init__(self, script: Script, manifest: Manifest, limit: int = LIMIT) -> None:
        self._script, self._manifest = script, manifest
        self._rows: list[int] = []
        model, left = manifest.model, limit
        for index, row in enumerate(script.rows):
            need = 4 * model.vocab * (len(row.ids) - row.prompt + 1)
            if self._rows and need > left:
                break
            self._rows.append(index)
            left -= need
        each = 4 * model.hidden * (model.layers + 1)
        most = max(0, left // (each * len(self._rows)))
        self._positions = {
            index: list(range(max(0, len(script.rows[index].ids) - most), len(script.rows[index].ids)))
            for index in self._rows
        }
        self._hidden: dict[int, list[Any]] = {index: [] for index in self._rows}
        self._logits: dict[Piece, NDArray[np.float32]] = {}
        self._measured: dict[Piece, float] = {}

    def add_hidden(self, hidden: list[Any]) -> None:
        """The embedding, then every layer's output in order: by row f32[tokens, H] (torch)."""
        for index in self._rows:
            self._hidden[index].append(hidden[index].numpy()[self._positions[index]].copy())

    def add_logits(self, logits: dict[Piece, NDArray[np.float32]]) -> None:
        self._logits = logits

    def add_measured(self, errors: dict[Piece, float]) -> None:
        """How far the same arithmetic in 16 bits is off, in parts of the largest logit."""
        self._measured = errors

    def golden(self) -> Golden:
        return Golden(tuple(self._row(index) for index in self._rows), self._about())

    def _row(self, index: int) -> GoldenRow:
        row = self._script.rows[index]
        wanted = {
            p.stop: p for s in self._script.steps for p in s.pieces if p.row == index and p.stop >= row.prompt
        }
        pieces = [wanted[stop] for stop in range(row.prompt, len(row.ids) + 1)]
        hidden = self._hidden[index]
        empty = np.zeros((0, 0, self._manifest.model.hidden), np.float32)
        return GoldenRow(
            row.ids,
            row.prompt,
            np.stack([self._logits[piece] for piece in pieces]),
            np.array([self._measured.get(piece, -1.0) for piece in pieces], np.float32),
            np.array(self._positions[index], np.int64),
            np.stack(hidden) if hidden else empty,
        )

    def _about(self) -> dict[str, Any]:
        import torch
        import transformers

        source = self._manifest.checkpoint
        assert source is not None
        return {
            "reference": "transformers MiniMaxM2, unmodified, fp32",
            "transformers": transformers.__version__,
            "torch": torch.__version__.partition("+")[0],
            "dtype": "f32",
            "checkpoint": {"identity": source.identity, "content": source.content},
            "weight_format": self._manifest.weight_format,
            "layers": self._manifest.model.layers,
            "tolerances": {"logits": LOGITS},
        }
