"""The recipes of a weight file, kept beside it in the bundle: what a refit after a fine-tune reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

from mm2c_runtime.errors import BundleError
from mm2c_runtime.weights.recipe import ITEMSIZE, Recipe
from mm2c_runtime.weights.recipe_json import from_json, to_json

SUFFIX = ".recipes.json"


def recipes_path(weights: Path) -> Path:
    """``rank0/weights.safetensors`` → ``rank0/weights.recipes.json``."""
    return weights.with_name(weights.name.removesuffix(".safetensors") + SUFFIX)


def write_recipes(weights: Path, recipes: dict[str, Recipe]) -> None:
    """By tensor of ``weights``, in the order given (offsets follow it): dtype, shape, and how it comes from the
    checkpoint's keys."""
    content = {
        name: {"dtype": recipe.dtype, "shape": list(recipe.shape), "recipe": to_json(recipe)}
        for name, recipe in recipes.items()
    }
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in content.items())
    recipes_path(weights).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def load_recipes(weights: Path) -> dict[str, Recipe]:
    """``read_recipes`` of a bundle. Raises BundleError where they cannot be read."""
    try:
        return read_recipes(weights)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"the recipes of the weights cannot be read: {error}",
            where=str(recipes_path(weights)),
            remedy="build the bundle again with `mm2c build … --force`",
        ) from None


def bytes_of(weights: Path) -> int:
    """Bytes of all tensors together, read off the recipes alone."""
    content = json.loads(recipes_path(weights).read_text(encoding="utf-8"))
    return sum(math.prod(entry["shape"]) * ITEMSIZE[entry["dtype"]] for entry in content.values())


def read_recipes(weights: Path) -> dict[str, Recipe]:
    """Inverse of ``write_recipes``."""
    content = json.loads(recipes_path(weights).read_text(encoding="utf-8"))
    return {name: from_json(entry["recipe"]) for name, entry in content.items()}
