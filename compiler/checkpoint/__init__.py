"""Finding, reading and checking a checkpoint. Imports neither torch nor transformers."""

from mm2c.checkpoint.config_file import read_config
from mm2c.checkpoint.convert import converted, converted_formats
from mm2c.checkpoint.formats import assumed_formats
from mm2c.checkpoint.locate import locate, locate_config
from mm2c.checkpoint.reader import Checkpoint
from mm2c.checkpoint.recipes import recipes_for_config, rope_recipes

__all__ = [
    "Checkpoint",
    "assumed_formats",
    "converted",
    "converted_formats",
    "locate",
    "locate_config",
    "read_config",
    "recipes_for_config",
    "rope_recipes",
]
