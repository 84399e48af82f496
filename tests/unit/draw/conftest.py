"""The hand-written graph is shared with the tests of the passes; ranks' graphs are written and read back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mm2c.bundle.rank_graph_file import RankGraphFile, load_graph
from mm2c.config import Mapping

sys.path[:0] = [str(Path(__file__).parents[1] / "passes")]


@pytest.fixture
def rank_graph(tmp_path: Path) -> Callable[..., RankGraphFile]:
    """(mapping, cuda=…) -> the graph of its rank, of a model with three FP8 layers."""
    from hand_graph import fp8_everywhere, hand_graph, model_config

    from mm2c.engine import cuda, onnxruntime
    from mm2c.lower.cuda import lower_cuda
    from mm2c.passes.shard import shard

    def make(mapping: Mapping, *, paged: bool = False) -> RankGraphFile:
        config = model_config(layers=3, hidden=128, head_dim=128, intermediate=512)
        graph = shard(hand_graph(config, fp8_everywhere(config)), config, mapping)
        folder = tmp_path / f"rank{mapping.rank}"
        folder.mkdir(exist_ok=True)
        if paged:
            cuda.write_graph(lower_cuda(graph), folder / "model.onnx")
        else:
            onnxruntime.write_graph(graph, folder / "model.onnx")
        return load_graph(tmp_path, mapping.rank)

    return make
