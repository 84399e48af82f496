"""What a lowering makes of a rank's dialect graph, before and after it is cut at the collectives."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mm2c_runtime.manifest import Collective
from mm2c_runtime.weights.recipe import Recipe


@dataclass
class LoweredRank:
    """A graph that ONNX Runtime runs, but for its DistCollective nodes.

    ``recipes`` has every initializer without data. ``in_place`` and ``padded`` are the manifest's: whether
    cache outputs may be bound to cache inputs, and whether rows shorter than the step are allowed.
    """

    model: ir.Model
    recipes: dict[str, Recipe]
    in_place: bool
    padded: bool


@dataclass
class Program:
    """A lowered rank as a chain: segment 0, collective 0, segment 1, … (one segment more than collectives).

    Segments name their inputs and outputs; ``recipes`` has the tensors that some segment reads.
    """

    segments: list[ir.Model]
    collectives: list[Collective]
    recipes: dict[str, Recipe]
    in_place: bool
    padded: bool
