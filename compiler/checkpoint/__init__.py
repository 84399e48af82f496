"""Finding, reading and checking a checkpoint. Imports neither torch nor transformers."""

from mm2c.checkpoint.config_file import ParsedConfig, read_config
from mm2c.checkpoint.config_quant import QuantConfig
from mm2c.checkpoint.formats import assumed_formats
from mm2c.checkpoint.locate import Located, locate, locate_config
from mm2c.checkpoint.reader import Checkpoint
from mm2c.checkpoint.recipes import recipes_for_config, rope_recipes
from mm2c.checkpoint.shard import TensorInfo

__all__ = [
    "Checkpoint",
    "Located",
    "ParsedConfig",
    "QuantConfig",
    "TensorInfo",
    "assumed_formats",
    "locate",
    "locate_config",
    "read_config",
    "recipes_for_config",
    "rope_recipes",
]
