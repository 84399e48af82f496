"""The messages that lowered ranks exchange are those planned, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hand_graph import RandomCheckpoint, fp8_everywhere, hand_graph, model_config
from lockstep import Groups, Lockstep, PagedLockstep, programs_of
from test_cuda_numerics import with_bodies

from mm2c.collectives import plan_collectives
from mm2c.config import Mapping
from mm2c.lower.fast import lower_fast

CONFIG = model_config(hidden=128, head_dim=128, intermediate=384, vocab=97)
RUNS: dict[str, tuple[Callable[..., Any], type[Lockstep]]] = {
    "fast": (lower_fast, Lockstep),
    "cuda": (with_bodies, PagedLockstep),
}


@pytest.mark.parametrize("lowering", list(RUNS))
@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 1), (4, 2), (8, 4), (1, 2), (2, 4)])
def test_bytes_of_a_step(tp: int, ep: int, lowering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill of six tokens, then a decode step of three rows."""
    monkeypatch.setattr("mm2c.lower.cuda.BLOCKS", range(1, 129))
    mapping = Mapping(tp, ep, dp=max(ep // tp, 1))
    graph = hand_graph(CONFIG, fp8_everywhere(CONFIG))
    lower, kind = RUNS[lowering]
    ranks = programs_of(graph, CONFIG, mapping, lower)
    run = kind(ranks, RandomCheckpoint(graph.recipes), CONFIG, mapping.kv_heads_of_rank(CONFIG.kv_heads))
    groups = Groups(run, mapping)
    (run if mapping.attention_dp == 1 else groups).reset(3, 32)
    for ids, lengths in ((np.arange(6)[None], [6]), (np.arange(3)[:, None], [1, 1, 1])):
        past = [0] * len(ids)
        if mapping.attention_dp == 1:
            run.step(ids, past, lengths)
        else:
            groups.step([(ids, past, lengths, 0)] * mapping.attention_dp)
        planned = plan_collectives(CONFIG, mapping, tokens=ids.size, rows=len(ids), itemsize=4)
        assert [(m.kind, m.bytes_in) for m in planned] == [(kind, size) for _, kind, size in run.sent]


def test_a_ring_sends_each_part_on() -> None:
    """Of M2 at tp 8, one decoded token in bf16: 6 KiB of activations, 8 B of sums, 98 KiB of logits."""
    config = model_config(layers=1, hidden=3072, heads=48, kv_heads=8, head_dim=128, vocab=200064)
    plan = plan_collectives(config, Mapping(8), tokens=1, rows=1, itemsize=2)
    assert [(m.name, m.layer, m.kind, m.group_size, m.bytes_in, m.sent) for m in plan] == [
        ("model.embed_tokens.all_reduce", None, "all_reduce", 8, 6144, 10752),
        ("model.layers.0.self_attn.qk_sums.all_reduce", 0, "all_reduce", 8, 8, 14),
        ("model.layers.0.self_attn.o_proj.all_reduce", 0, "all_reduce", 8, 6144, 10752),
        ("model.layers.0.mlp.experts.all_reduce", 0, "all_reduce", 8, 6144, 10752),
        ("lm_head.all_gather", None, "all_gather", 8, 100032, 700224),
    ]


def test_attention_groups_exchange_tokens_alone() -> None:
    config = model_config(layers=1, hidden=3072)
    plan = plan_collectives(config, Mapping(1, 8, 8), tokens=4, rows=4, itemsize=2)
    assert [(m.name, m.group_size, m.bytes_in, m.sent) for m in plan] == [
        ("model.layers.0.mlp.experts.tokens.all_gather", 8, 24576, 172032),
        ("model.layers.0.mlp.experts.reduce_scatter", 8, 196608, 172032),
    ]
    assert plan_collectives(config, Mapping(), tokens=4, rows=4, itemsize=2) == []
    assert plan_collectives(config, Mapping(dp=3), tokens=4, rows=4, itemsize=2) == []
