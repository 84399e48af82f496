"""What a streamed comparison needs of a bundle's engine: one layer at a time, over all steps of a script."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mm2c.verify.script import Piece

Hidden = NDArray[np.float32]


@dataclass(frozen=True)
class Computed:
    """What the ranks made of one piece. ``values``: by rank of the piece's group, f32[tokens, H], or f32[1, H] of
    the last token where the program goes on with that alone."""

    piece: Piece
    values: tuple[tuple[int, Hidden], ...]


@dataclass
class LayerOutput:
    """``fed``: from the reference's own input; ``chain``: from the engine's layer before. ``attention``: the hidden
    state behind attention, of ``fed``; empty where the program does not show it."""

    fed: list[Computed] = field(default_factory=list)
    chain: list[Computed] = field(default_factory=list)
    attention: list[Computed] = field(default_factory=list)


@dataclass
class HeadOutput:
    """By piece, f32[V] of its last token, of rank 0 of its group."""

    fed: dict[Piece, Hidden] = field(default_factory=dict)
    chain: dict[Piece, Hidden] = field(default_factory=dict)


class LayerEngine(Protocol):
    """``name`` says what computes, ``dtype`` is that of its activations: "f32" or "bf16"."""

    name: str
    dtype: str

    def embed(self) -> LayerOutput:
        """Run everything before layer 0; ``chain`` is the embedded tokens."""

    def run_layer(self, layer: int, hidden: list[Any]) -> LayerOutput:
        """``hidden``: the reference's input of the layer, by row f32[tokens, H] (torch). Layers are run in order;
        one that is left out keeps the chain as it was."""

    def logits(self, hidden: list[Any]) -> HeadOutput:
        """The head, from the reference's last hidden states and from the chain's."""

    def close(self) -> None: ...
