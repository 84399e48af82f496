"""Whether a bundle was built from this checkpoint: configuration, tensors, and samples of the weights themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mm2c.bundle.manifest import model_info
from mm2c.checkpoint.convert import converted
from mm2c.checkpoint.names import SCALE_SUFFIX
from mm2c.checkpoint.shard import read_shard
from mm2c.errors import UserError
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import Computed

if TYPE_CHECKING:
    from mm2c.checkpoint import Checkpoint
    from mm2c_runtime.manifest import Manifest

ROWS = 8  # of each tensor that are compared


def check_same(manifest: Manifest, bundle: Path, checkpoint: Checkpoint) -> None:
    """Refuse another checkpoint before the reference is loaded.

    Raises:
        UserError: config.json, the place or type of a tensor, or a weight is not the bundle's. It says which.
    """
    source = manifest.checkpoint
    assert source is not None  # such bundles have no weights and are refused before
    if checkpoint.identity() != source.identity:
        built, here = manifest.model.model_dump(), model_info(checkpoint.config).model_dump()
        different = [
            f"{key} {built[key]} there, {here[key]} here" for key in built if built[key] != here[key]
        ]
        what = ", ".join(different) or "its configuration, or the place or type of its tensors, is another"
    elif manifest.weights == "checkpoint" or manifest.engine != "onnxruntime":
        if not source.content or checkpoint.content() == source.content:
            return
        what = "its weights are others"
    elif name := _different_weight(manifest, bundle, checkpoint):
        what = f"the weights of {name} are others"
    else:
        return
    raise UserError(
        f"the bundle was built from another checkpoint: {what}",
        where=f"{bundle} (built from {source.source}); {checkpoint.folder}",
        remedy="pass the checkpoint it was built from with --against, or build the bundle again",
    )


def _different_weight(manifest: Manifest, bundle: Path, checkpoint: Checkpoint) -> str:
    """A tensor whose first rows on rank 0, as stored, are not the checkpoint's; empty where there is none.

    A fine-tune has the same configuration and tensors, so only the values tell. Rank 0's part of a tensor begins
    where the whole tensor begins.
    """
    portable = manifest.lowerings.get("portable")
    if portable is None:
        return ""
    path = bundle / portable.ranks[0].weights
    stored, _ = read_shard(path)
    recipes, _ = converted(
        checkpoint.recipes(), checkpoint.formats, manifest.weight_format, checkpoint.config
    )
    for name, recipe in recipes.items():
        info = stored.get(name)
        if (
            info is None
            or info.dtype != recipe.dtype
            or name.endswith(SCALE_SUFFIX)
            or isinstance(recipe, Computed)
        ):
            continue
        own = np.memmap(path, NUMPY[info.dtype], "r", info.offset, info.shape)
        box = [(0, min(size, ROWS)) for size in info.shape[:-1]] + [(0, info.shape[-1])]
        if len(box) == 3:
            box[0] = (0, 1)  # one expert
        here = evaluate(recipe, checkpoint, tuple(box))
        if (
            np.ascontiguousarray(own[tuple(slice(*b) for b in box)]).tobytes()
            != np.ascontiguousarray(here).tobytes()
        ):
            return name
    return ""
