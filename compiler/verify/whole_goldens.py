"""Golden vectors of a reference that is in memory as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm2c.verify.golden_file import GoldenWriter
from mm2c.verify.script import DECODE_STEPS, whole_rows

if TYPE_CHECKING:
    from mm2c.verify.logits import Trajectory
    from mm2c.verify.reference import Reference
    from mm2c_runtime.manifest import Manifest

ROWS = 3


def golden_of(reference: Reference, answered: list[Trajectory], manifest: Manifest) -> GoldenWriter:
    """Of the first few rows: their prompts, and the first tokens that the reference answered."""
    rows = answered[:ROWS]
    steps = min(DECODE_STEPS, len(rows[0].tokens) - 1)
    script = whole_rows(
        [row.prompt for row in rows], [row.tokens[:steps] for row in rows], manifest.limits.prefill_chunk
    )
    golden = GoldenWriter(script, manifest)
    states = [reference.hidden_states(list(row.ids)) for row in script.rows]
    for level in zip(*states, strict=True):
        golden.add_hidden(list(level))
    golden.add_logits(
        {
            piece: rows[piece.row].logits[piece.stop - script.rows[piece.row].prompt]
            for step in script.steps
            for piece in step.pieces
            if piece.stop >= script.rows[piece.row].prompt
        }
    )
    return golden
