"""The paged lowering by its function bodies on ONNX Runtime, in f32, against the portable lowering over rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hand_graph import RandomCheckpoint, fp8_everywhere, hand_graph, model_config
from lockstep import Lockstep, PagedLockstep, programs
from test_lockstep_numerics import DENSE, FEWER_LOCAL_EXPERTS, FP8, ODD, assert_close, conversation

from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.lower.cuda import lower_cuda
from mm2c.lower.portable import attach_bodies, lower_portable
from mm2c.lower.program import LoweredRank
from mm2c.weights.rank_graph import RankGraph

CUTS = [(1, 1), (2, 1), (4, 1), (4, 2), (4, 4)]
MIXED = replace(
    fp8_everywhere(FP8),
    fp8=fp8_everywhere(FP8).fp8 - {"model.layers.1.mlp.experts", "model.layers.0.self_attn.k_proj"},
)


def with_bodies(graph: RankGraph) -> LoweredRank:
    lowered = lower_cuda(graph)
    attach_bodies(lowered.model, collectives=False)
    return replace(lowered, in_place=False)  # bodies return new caches


def formats_of(config: ModelConfig, kind: str) -> WeightFormats | None:
    return {"dense": None, "fp8": fp8_everywhere(config), "mixed": MIXED}[kind]


@pytest.mark.parametrize(("tp", "ep"), CUTS)
@pytest.mark.parametrize(
    ("config", "kind"),
    [(DENSE, "dense"), (FP8, "fp8"), (FP8, "mixed"), (FEWER_LOCAL_EXPERTS, "dense"), (ODD, "dense")],
    ids=["dense", "fp8", "mixed", "few_experts", "odd"],
)
def test_logits_of_every_cut(config: ModelConfig, kind: str, tp: int, ep: int) -> None:
    graph = hand_graph(config, formats_of(config, kind))
    reader = RandomCheckpoint(graph.recipes)
    expected = conversation(Lockstep(programs(graph, config, 1, 1, lower_portable), reader, config), config)
    found = conversation(PagedLockstep(programs(graph, config, tp, ep, with_bodies), reader, config), config)
    assert_close(found, expected)


def test_padded_rows() -> None:
    graph = hand_graph(DENSE)
    reader = RandomCheckpoint(graph.recipes)
    rng = np.random.default_rng(0)
    lengths = [7, 1, 12]
    padded = rng.integers(0, DENSE.vocab, (3, 12))
    runs: list[Any] = [
        Lockstep(programs(graph, DENSE, 1, 1, lower_portable), reader, DENSE),
        PagedLockstep(programs(graph, DENSE, 2, 1, with_bodies), reader, DENSE),
    ]
    found = []
    for run in runs:
        run.reset(rows=3, capacity=100)
        found.append([run.step(padded, [0, 0, 0], lengths), run.step(padded[:, :1], lengths, [1, 1, 1])])
    assert_close(found[1], found[0])


@pytest.mark.parametrize("all_logits", [False, True])
def test_the_traced_graph(all_logits: bool) -> None:
    """The real front end, mixed formats, a gate stored in f32 and a head stored in f16."""
    from mm2c.checkpoint.recipes import recipes_for_config
    from mm2c.trace import trace

    config = model_config(hidden=128, head_dim=128, intermediate=512, vocab=97)
    stored = [("lm_head.weight", "f16"), ("model.layers.0.mlp.gate.weight", "f32")]
    formats = WeightFormats(MIXED.fp8, tuple(stored))
    options = replace(BuildOptions(), all_logits=all_logits)
    graph = trace(config, formats, options, recipes_for_config(config, formats))
    reader = RandomCheckpoint(graph.recipes)
    expected = conversation(Lockstep(programs(graph, config, 1, 1, lower_portable), reader, config), config)
    assert expected[0].ndim == (3 if all_logits else 2)
    for tp, ep in ((1, 1), (4, 2)):
        run = PagedLockstep(programs(graph, config, tp, ep, with_bodies), reader, config)
        assert_close(conversation(run, config), expected)
