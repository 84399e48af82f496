"""Attention-DP: groups with requests of their own give the logits that one rank gives each of them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hand_graph import RandomCheckpoint, fp8_everywhere, hand_graph, model_config
from lockstep import Batch, Groups, Lockstep, PagedLockstep, programs_of
from test_cuda_numerics import with_bodies
from test_lockstep_numerics import DENSE, FP8, assert_close

from mm2c.config import Mapping, ModelConfig
from mm2c.lower.onnxruntime import LOWERINGS
from mm2c.lower.portable import lower_portable

RUNS: dict[str, tuple[Callable[..., Any], type[Lockstep]]] = {
    **{name: (lower, Lockstep) for name, lower in LOWERINGS.items()},
    "cuda": (with_bodies, PagedLockstep),
}
REPLICATED = model_config(heads=8, kv_heads=1, vocab=97)


def steps_of(group: int, config: ModelConfig) -> list[Batch | None]:
    """Group 0 has three rows, the next one fewer each, the last none at the end; groups begin one after the other,
    so that one decodes where another prefills and a third has nothing."""
    rng = np.random.default_rng(group)
    rows = max(3 - group, 1)
    prompts = [5 + 3 * row + 2 * group for row in range(rows)]
    found: list[Batch | None] = [None] * group
    for row, length in enumerate(prompts):
        for start, stop in ((0, 4), (4, length)):
            ids = rng.integers(0, config.vocab, (1, stop - start))
            found.append((ids, [start], [stop - start], row))
    for n in range(3):
        ids = rng.integers(0, config.vocab, (rows, 1))
        found.append((ids, [length + n for length in prompts], [1] * rows, 0))
    return found


@pytest.mark.parametrize("lowering", list(RUNS))
@pytest.mark.parametrize(
    ("config", "tp", "ep"),
    [(DENSE, 1, 2), (DENSE, 2, 8), (FP8, 1, 4), (FP8, 2, 4), (REPLICATED, 2, 4)],
    ids=["dense-1-2", "dense-2-8", "fp8-1-4", "fp8-2-4", "replicated-2-4"],
)
def test_groups_give_what_one_rank_gives(config: ModelConfig, tp: int, ep: int, lowering: str) -> None:
    mapping = Mapping(tp, ep, dp=ep // tp)
    graph = hand_graph(config, fp8_everywhere(config) if config is FP8 else None)
    reader = RandomCheckpoint(graph.recipes)
    alone = Lockstep(programs_of(graph, config, Mapping(), lower_portable), reader, config)
    lower, kind = RUNS[lowering]
    together = Groups(kind(programs_of(graph, config, mapping, lower), reader, config), mapping)
    together.reset(rows=3, capacity=32)
    scripts = [steps_of(group, config) for group in range(mapping.attention_dp)]
    found: list[list[Any]] = [[] for _ in scripts]
    for n in range(max(map(len, scripts))):
        batches = [script[n] if n < len(script) else None for script in scripts]
        for group, logits in enumerate(together.step(batches, spare=n % 3)):
            if batches[group] is not None:
                found[group].append(logits)
    for script, got in zip(scripts, found, strict=True):
        alone.reset(rows=3, capacity=32)
        assert_close(got, [alone.step(*batch) for batch in script if batch is not None])
