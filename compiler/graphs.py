"""What the graph stage of a build hands on, whatever the engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from mm2c_runtime.manifest import CudaProgram, Lowering
from mm2c_runtime.manifest_tensorrt import TensorRTProgram
from mm2c_runtime.weights.recipe import Recipe
from mm2c_runtime.weights.recipe_file import read_recipes

STAGE_FILE = (
    ".stage.json"  # what the graph stage tells the weight stage; kept in the cache, not in the bundle
)


@dataclass(frozen=True)
class Graphs:
    """The manifest's programs and the weight files they read, by path in the bundle.

    ``lowerings``: of ONNX Runtime; ``cuda`` and ``tensorrt``: of these engines, None for others.
    """

    recipes: dict[str, dict[str, Recipe]]
    lowerings: dict[str, Lowering] = field(default_factory=dict)
    cuda: CudaProgram | None = None
    tensorrt: TensorRTProgram | None = None

    def dump(self) -> str:
        return json.dumps(
            {
                "lowerings": {name: value.model_dump() for name, value in self.lowerings.items()},
                "cuda": self.cuda.model_dump() if self.cuda else None,
                "tensorrt": self.tensorrt.model_dump() if self.tensorrt else None,
                "weights": list(self.recipes),
            }
        )

    @classmethod
    def load(cls, stage: Path, *, bare: bool = False) -> Graphs:
        """``bare``: without the recipes, of which a bundle without weights has no files."""
        raw = json.loads((stage / STAGE_FILE).read_text(encoding="utf-8"))
        return cls(
            {} if bare else {path: read_recipes(stage / path) for path in raw["weights"]},
            {name: Lowering.model_validate(value) for name, value in raw["lowerings"].items()},
            CudaProgram.model_validate(raw["cuda"]) if raw["cuda"] else None,
            TensorRTProgram.model_validate(raw["tensorrt"]) if raw["tensorrt"] else None,
        )
