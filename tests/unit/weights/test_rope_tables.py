"""The cos and sin tables against transformers' own rotary module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm2c.checkpoint import rope_recipes
from mm2c.checkpoint.config_rope import parse_rope
from mm2c.config import ModelConfig
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import Computed
from mm2c_runtime.weights.rope import frequencies, table

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
CASES: list[dict[str, Any]] = [
    {"rope_theta": 5000000, "rotary_dim": 64},
    {"rope_theta": 10000.0, "rotary_dim": 24},
    {"rope_theta": 10000.0, "rotary_dim": 128},
    {"rope_theta": 5000000, "rotary_dim": 64, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    {"rope_theta": 5000000, "rotary_dim": 64, "rope_scaling": YARN},
    {"rope_theta": 5000000, "rotary_dim": 64, "rope_scaling": {**YARN, "attention_factor": 1.25}},
    {"rope_theta": 10000.0, "rotary_dim": 64, "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1}},
    {"rope_theta": 10000.0, "rotary_dim": 64, "rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2}},
    {"rope_theta": 10000.0, "rotary_dim": 64, "rope_scaling": {**YARN, "truncate": False}},
    {
        "rope_theta": 500000.0,
        "rotary_dim": 64,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    },
]


def module(raw: dict[str, Any], context: int = 4096) -> Any:
    from transformers import MiniMaxM2Config
    from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2RotaryEmbedding

    return MiniMaxM2RotaryEmbedding(MiniMaxM2Config(head_dim=128, max_position_embeddings=context, **raw))


def reference(raw: dict[str, Any], positions: int) -> tuple[Any, Any]:
    import torch

    cos, sin = module(raw)(torch.zeros(1, 1, 1), torch.arange(positions)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half].numpy(), sin[0, :, :half].numpy()


def recipes_of(raw: dict[str, Any], positions: int) -> dict[str, Any]:
    rope = parse_rope(raw, Path("config.json"), 128, 4096)
    config = ModelConfig(1, 128, 1, 1, 128, 128, 2, 1, 64, 1e-6, 4096, rope, None, ())
    return rope_recipes(config, positions)


class Nothing:
    def read_rows(self, key: str, start: int, stop: int) -> Any:
        raise AssertionError("a table reads no tensor")


@pytest.mark.parametrize(("raw", "positions"), [*((raw, 4096) for raw in CASES), (CASES[0], 204800)])
def test_tables_are_those_of_transformers(raw: dict[str, Any], positions: int) -> None:
    recipes = recipes_of(raw, positions)
    frequency, _ = frequencies(dict(recipes["rope.cos"].args))
    expected_frequency = module(raw).inv_freq.numpy()
    np.testing.assert_allclose(frequency, expected_frequency, rtol=2.4e-7)  # two units in the last place
    equal = frequency == expected_frequency  # a last bit that differs turns far positions: leave those out
    assert equal.mean() >= 0.9
    for name, expected in zip(("rope.cos", "rope.sin"), reference(raw, positions), strict=True):
        found = evaluate(recipes[name], Nothing())
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        np.testing.assert_allclose(found[:, equal], expected[:, equal], rtol=0, atol=2.4e-7)


def test_rows_of_a_table() -> None:
    args = {"theta": 10000.0, "rotary_dim": 8}
    np.testing.assert_array_equal(table("rope_cos", args, 3, 9), table("rope_cos", args, 0, 16)[3:9])
    recipe = Computed("rope_sin", (16, 4), tuple(sorted(args.items())))
    assert evaluate(recipe, None, ((2, 5), (1, 3))).shape == (3, 2)  # type: ignore[arg-type]
