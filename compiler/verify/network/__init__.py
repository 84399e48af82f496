"""A TensorRT network (INetworkDefinition) evaluated layer by layer on the CPU: what the parser made of a graph,
computed without a GPU and without building an engine. ``replay`` says what it promises."""

from mm2c.verify.network.calls import CollectiveCall, Collectives, collectives_of
from mm2c.verify.network.dtypes import Precision
from mm2c.verify.network.errors import ReplayError, UnknownLayer
from mm2c.verify.network.ranks import run_ranks
from mm2c.verify.network.read import fix_shapes
from mm2c.verify.network.replay import NetworkReplay

__all__ = [
    "CollectiveCall",
    "Collectives",
    "NetworkReplay",
    "Precision",
    "ReplayError",
    "UnknownLayer",
    "collectives_of",
    "fix_shapes",
    "run_ranks",
]
