"""The value that flows from trace through the passes to the lowerings."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from mm2c_runtime.weights.recipe import Recipe


@dataclass
class RankGraph:
    """A dialect graph whose initializers carry shape and dtype but no data, and the recipe of each of
    them."""

    model: ir.Model
    recipes: dict[str, Recipe] = field(default_factory=dict)
