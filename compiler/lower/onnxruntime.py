"""The lowerings of ONNX Runtime by name."""

from __future__ import annotations

from collections.abc import Callable

from mm2c.lower.fast import lower_fast
from mm2c.lower.portable import lower_portable
from mm2c.lower.program import LoweredRank
from mm2c.weights.rank_graph import RankGraph

LOWERINGS: dict[str, Callable[[RankGraph], LoweredRank]] = {"fast": lower_fast, "portable": lower_portable}
WEIGHTS = {"fast": "weights.ort.safetensors", "portable": "weights.safetensors"}
