"""Tensors of programs whose bundle has no weights files: evaluated from the checkpoint, given to the sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mm2c_runtime.manifest import Manifest, RankProgram
from mm2c_runtime.weights.checkpoint import StoredCheckpoint, checkpoint_folder
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.load import load_tensors
from mm2c_runtime.weights.recipe_file import load_recipes

Tensors = dict[str, ort.OrtValue]
# How ONNX Runtime is handed each type: the numpy type of the same bytes, and ONNX's number of the type.
_GIVEN: dict[np.dtype[Any], tuple[type[Any], int]] = {
    NUMPY["e4m3"]: (np.uint8, 17),
    NUMPY["bf16"]: (np.uint16, 16),
    NUMPY["f16"]: (np.float16, 10),
    NUMPY["f32"]: (np.float32, 1),
}


def checkpoint_tensors(
    bundle: Path, manifest: Manifest, ranks: list[RankProgram], checkpoint: Path | None = None
) -> list[Tensors]:
    """By rank, the tensors of its segments by name.

    ``checkpoint``: the folder, where it is not that of the build. Raises BundleError where it is not there, not the
    one, or changes meanwhile.
    """
    assert manifest.checkpoint is not None  # or nothing can be served, and that was asked before
    folder = checkpoint_folder(manifest.checkpoint, checkpoint)
    recipes = [load_recipes(bundle / rank.weights) for rank in ranks]
    with StoredCheckpoint.open(folder, manifest.checkpoint) as stored:
        stored.check_sources(recipe for own in recipes for recipe in own.values())
        every = {(rank, name): recipe for rank, own in enumerate(recipes) for name, recipe in own.items()}
        arrays = load_tensors(every, stored)
    found: list[Tensors] = [{} for _ in ranks]
    for (rank, name), array in arrays.items():
        kind, number = _GIVEN[array.dtype]
        found[rank][name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(kind), number)
    return found
