"""Both lowerings, sharded every way, against the portable lowering of one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hand_graph import RandomCheckpoint, fp8_everywhere, hand_graph, model_config
from lockstep import Lockstep, programs

from mm2c.config import BuildOptions, ModelConfig, Rope, WeightFormats
from mm2c.lower.fast import lower_fast
from mm2c.lower.onnxruntime import LOWERINGS
from mm2c.lower.portable import lower_portable
from mm2c.weights.rank_graph import RankGraph

TOLERANCE = 1e-5  # of the largest logit
PROMPTS = (7, 1, 12)
CUTS = [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (4, 4)]

DENSE = model_config()
FP8 = model_config(hidden=128, head_dim=128, intermediate=512, vocab=97)
FEWER_LOCAL_EXPERTS = model_config(experts=8, top_k=5, heads=4, kv_heads=4, layers=1, rope=Rope(5e6, 32))
ODD = model_config(
    hidden=40, heads=12, head_dim=24, intermediate=20, experts=12, top_k=1, vocab=101, rope=Rope(1e6, 12)
)


def conversation(run: Lockstep, config: ModelConfig) -> list[np.ndarray[Any, Any]]:
    """Prompts of three rows (one in two chunks), then four decode steps of the ragged batch."""
    rng = np.random.default_rng(0)
    logits = []
    run.reset(rows=len(PROMPTS), capacity=32)
    for row, length in enumerate(PROMPTS):
        past = 0
        for chunk in (length,) if length < 8 else (5, length - 5):
            ids = rng.integers(0, config.vocab, (1, chunk))
            logits.append(run.step(ids, [past], [chunk], first_row=row))
            past += chunk
    lengths: Sequence[int] = PROMPTS
    for _ in range(4):
        logits.append(run.step(rng.integers(0, config.vocab, (len(PROMPTS), 1)), lengths, [1] * len(PROMPTS)))
        lengths = [length + 1 for length in lengths]
    return logits


@pytest.fixture(scope="module")
def reference() -> Callable[[RankGraph, ModelConfig], list[np.ndarray[Any, Any]]]:
    known: dict[tuple[ModelConfig, frozenset[str]], list[np.ndarray[Any, Any]]] = {}

    def compute(graph: RankGraph, config: ModelConfig) -> list[np.ndarray[Any, Any]]:
        key = (config, frozenset(name for name, r in graph.recipes.items() if r.dtype == "e4m3"))
        if key not in known:
            run = Lockstep(
                programs(graph, config, 1, 1, lower_portable), RandomCheckpoint(graph.recipes), config
            )
            known[key] = conversation(run, config)
        return known[key]

    return compute


def assert_close(found: list[np.ndarray[Any, Any]], expected: list[np.ndarray[Any, Any]]) -> None:
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.parametrize("lowering", ["fast", "portable"])
@pytest.mark.parametrize(("tp", "ep"), CUTS)
@pytest.mark.parametrize(
    "config", [DENSE, FP8, FEWER_LOCAL_EXPERTS, ODD], ids=["dense", "fp8", "few_experts", "odd"]
)
def test_logits_of_every_cut(
    config: ModelConfig, tp: int, ep: int, lowering: str, reference: Callable[..., list[np.ndarray[Any, Any]]]
) -> None:
    graph = hand_graph(config, fp8_everywhere(config) if config is FP8 else None)
    run = Lockstep(
        programs(graph, config, tp, ep, LOWERINGS[lowering]), RandomCheckpoint(graph.recipes), config
    )
    assert_close(conversation(run, config), reference(graph, config))


def test_portable_takes_padded_rows(reference: Callable[..., list[np.ndarray[Any, Any]]]) -> None:
    graph = hand_graph(DENSE)
    run = Lockstep(programs(graph, DENSE, 2, 1, lower_portable), RandomCheckpoint(graph.recipes), DENSE)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, DENSE.vocab, (1, n)) for n in PROMPTS]
    run.reset(rows=3, capacity=32)
    alone = np.concatenate([run.step(ids, [0], [ids.shape[1]], first_row=r) for r, ids in enumerate(rows)])
    padded = np.zeros((3, max(PROMPTS)), np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: ids.shape[1]] = ids
    run.reset(rows=3, capacity=32)
    assert_close([run.step(padded, [0, 0, 0], PROMPTS)], [alone])


def test_a_saturated_router_chooses_as_the_body_does() -> None:
    """Scores that are equal in f32 (sigmoid 1.0) are told apart by the bias, then by the id."""
    graph = hand_graph(DENSE)

    class Saturated(RandomCheckpoint):
        def _make(self, key: str) -> np.ndarray[Any, Any]:
            values = super()._make(key)
            return np.abs(values) * 100 if "gate.weight" in key or "embed" in key else values

    found = []
    for lower in (lower_portable, lower_fast):
        run = Lockstep(programs(graph, DENSE, 1, 1, lower), Saturated(graph.recipes), DENSE)
        found.append(conversation(run, DENSE))
    assert_close(found[1], found[0])


@pytest.mark.parametrize("all_logits", [False, True])
def test_the_traced_graph(all_logits: bool) -> None:
    """The real front end instead of the hand-written graph: mixed formats, tp 4 ep 2, both lowerings."""
    from mm2c.checkpoint.recipes import recipes_for_config
    from mm2c.trace import trace

    formats = WeightFormats(fp8=fp8_everywhere(FP8).fp8 - {"model.layers.1.mlp.experts"})
    options = replace(BuildOptions(), all_logits=all_logits)
    graph = trace(FP8, formats, options, recipes_for_config(FP8, formats))
    reader = RandomCheckpoint(graph.recipes)
    expected = conversation(Lockstep(programs(graph, FP8, 1, 1, lower_portable), reader, FP8), FP8)
    assert expected[0].ndim == (3 if all_logits else 2)
    for lower in LOWERINGS.values():
        for tp, ep in ((1, 1), (4, 2)):
            run = Lockstep(programs(graph, FP8, tp, ep, lower), reader, FP8)
            assert_close(conversation(run, FP8), expected)
