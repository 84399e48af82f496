"""A traced graph, run by its function bodies, against the unmodified transformers module in fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from traced_model import config, formats, official, random_weights, session

from mm2c.checkpoint.recipes import recipes_for_config
from mm2c.config import BuildOptions, ModelConfig, Rope
from mm2c.trace import trace

CAPACITY = 24
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense f32": ({}, {"dense": "f32"}),
    "dense bf16": ({"heads": 4, "kv_heads": 1, "rope": Rope(1e4, 32)}, {}),
    "fp8": (
        {"hidden": 160, "intermediate": 128, "head_dim": 48, "rope": Rope(5e6, 24), "experts": 5, "top_k": 2},
        {"attention": True, "experts": True},
    ),
    "fp8 experts of an odd width": (
        {"layers": 1, "hidden": 40, "intermediate": 72, "heads": 3, "kv_heads": 3, "top_k": 1, "vocab": 17},
        {"experts": True, "dense": "f16"},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("all_logits", [False, True])
def test_prefill_and_decode_equal_transformers(name: str, all_logits: bool) -> None:
    changes, stored = CASES[name]
    shape = config(**changes)
    kinds = formats(shape, **stored)
    graph = trace(shape, kinds, BuildOptions(all_logits=all_logits), recipes_for_config(shape, kinds))
    weights = random_weights(graph, shape, seed=len(name))
    worst, largest = compare(shape, session(graph, weights), official(shape, weights), all_logits)
    assert worst <= 1e-5 * largest


def compare(shape: ModelConfig, engine: Any, model: Any, all_logits: bool) -> tuple[float, float]:
    """Ragged prefill, a second ragged chunk with an idle row, three decode steps: (max |Δ|, max |logits|)."""
    generator = np.random.default_rng(1)
    rows = 3
    history: list[list[int]] = [[] for _ in range(rows)]
    caches = {
        f"{kind}_cache.{layer}": np.zeros((rows, shape.kv_heads, CAPACITY, shape.head_dim), np.float32)
        for layer in range(shape.layers)
        for kind in "kv"
    }
    outputs = [o.name for o in engine.get_outputs()]
    worst = largest = 0.0
    for new in ([7, 1, 4], [2, 5, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]):
        seq = max(new)
        ids = generator.integers(0, shape.vocab, (rows, seq))
        past = np.array([len(tokens) for tokens in history], np.int32)
        feeds = {"input_ids": ids, "past_len": past, "new_len": np.array(new, np.int32), **caches}
        result = dict(zip(outputs, engine.run(None, feeds), strict=True))
        caches = {key: result[key.replace("cache", "cache_out")] for key in caches}
        assert np.isfinite(result["logits"]).all()
        for row, count in enumerate(new):
            if not count:
                continue
            history[row] += ids[row, :count].tolist()
            with torch.no_grad():
                want = model(torch.tensor([history[row]])).logits[0].numpy()
            got = result["logits"][row]
            want, got = (want[-count:], got[:count]) if all_logits else (want[-1], got)
            worst = max(worst, float(np.abs(want - got).max()))
            largest = max(largest, float(np.abs(want).max()))
    return worst, largest
