"""The rotary embedding of config.json in both spellings, and its refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mm2c.checkpoint.config_rope import parse_rope
from mm2c.config import Rope
from mm2c.errors import UserError

PATH = Path("config.json")


def parse(**raw: Any) -> Rope:
    return parse_rope(raw, PATH, 128, 4096)


def test_released_spelling() -> None:
    assert parse(rope_theta=5000000, rotary_dim=64) == Rope(5e6, 64)


def test_transformers_5_spelling() -> None:
    parameters = {"rope_type": "default", "rope_theta": 5000000, "partial_rotary_factor": 0.5}
    assert parse(rope_parameters=parameters) == Rope(5e6, 64)
    assert parse(rope_parameters=parameters, rotary_dim=64, rope_theta=5000000.0) == Rope(5e6, 64)


def test_defaults_are_those_of_transformers() -> None:
    assert parse() == Rope(5e6, 128)


def test_linear() -> None:
    assert dict(parse(rope_scaling={"type": "linear", "factor": 2.0}).scaling) == {
        "rope_type": "linear",
        "factor": 2.0,
    }


def test_yarn_fills_the_original_context() -> None:
    scaling = dict(parse(rope_scaling={"rope_type": "yarn", "factor": 4.0}).scaling)
    assert scaling == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    scaling = dict(
        parse(
            rope_scaling={"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024}
        ).scaling
    )
    assert scaling["factor"] == 4.0


def test_outer_original_context_wins() -> None:
    inner = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    assert (
        dict(parse(rope_scaling=inner, original_max_position_embeddings=512).scaling)[
            "original_max_position_embeddings"
        ]
        == 512
    )


def test_scaling_is_hashable_and_sorted() -> None:
    rope = parse(rope_scaling={"truncate": False, "rope_type": "yarn", "factor": 4.0, "beta_fast": 16})
    assert list(rope.scaling) == sorted(rope.scaling)
    hash(rope)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "longrope"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "proportional"),
        ({"rope_scaling": {"rope_type": "yam", "factor": 2.0}}, "yam"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2, "beta_fast": 3}}, "beta_fast"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fats": 3}}, "beta_fats"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 1}}, "high_freq_factor"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "rope_scaling"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        (
            {"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling",
        ),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 5e6}}, "rope_theta"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rotary_dim": 63}, "rotary_dim"),
        ({"rotary_dim": 256}, "rotary_dim"),
        ({"rotary_dim": 0}, "rotary_dim"),
        ({"rotary_dim": 64.0}, "rotary_dim"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"rotary_dim": 32, "partial_rotary_factor": 0.5}, "rotary_dim"),
    ],
)
def test_refused_by_name(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(**raw)
    assert named in caught.value.what


def test_misspelt_parameter_has_a_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        parse(rope_scaling={"rope_type": "yarn", "factor": 2, "beta_fats": 3})
    assert 'did you mean "beta_fast"?' in caught.value.remedy
