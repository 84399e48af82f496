"""What the TensorRT engines refuse before any work, and what they take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hand_graph import fp8_everywhere, model_config

from mm2c.config import BuildOptions, Mapping, ModelConfig, Rope, WeightFormats
from mm2c.engine.tensorrt_limits import check_tensorrt
from mm2c.errors import UserError

M2 = model_config(
    layers=1,
    hidden=3072,
    heads=48,
    kv_heads=8,
    head_dim=128,
    intermediate=1536,
    experts=256,
    top_k=8,
    rope=Rope(5e6, 64),
)


def check(config: ModelConfig = M2, formats: WeightFormats | None = None, **options: Any) -> None:
    given = {"engine": "tensorrt-rtx", **options}
    check_tensorrt(config, fp8_everywhere(config) if formats is None else formats, BuildOptions(**given))


@pytest.mark.parametrize("engine", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("mapping", [Mapping(), Mapping(4), Mapping(8), Mapping(8, 8), Mapping(4, 2, 2)])
def test_layouts_of_the_released_model(engine: str, mapping: Mapping) -> None:
    check(engine=engine, mapping=mapping)


@pytest.mark.parametrize("engine", ["tensorrt-rtx", "tensorrt"])
def test_attention_dp_is_refused_with_the_engine_that_has_it(engine: str) -> None:
    with pytest.raises(UserError, match=f"{engine} engine has no attention-DP") as error:
        check(engine=engine, mapping=Mapping(1, 4, 4))
    assert "--engine cuda" in str(error.value.remedy)


def test_weights_of_the_checkpoint_are_refused() -> None:
    with pytest.raises(UserError, match="reads its weights from the bundle") as error:
        check(weights="checkpoint")
    assert error.value.where == "--weights checkpoint"


def test_no_plan_of_a_negative_number_of_layers() -> None:
    with pytest.raises(UserError, match="-1 decoder layers"):
        check(layers_per_plan=-1)
    check(layers_per_plan=0)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"hidden": 3000}, "hidden size of 3000"),
        ({"heads": 47, "kv_heads": 47, "head_dim": 24}, "query width of 1128"),
        ({"kv_heads": 3, "head_dim": 24, "heads": 48}, "key and value width of 72"),
        ({"intermediate": 1500}, "expert intermediate of 1500"),
    ],
)
def test_broken_scale_blocks_are_refused_by_name(changes: dict[str, int], what: str) -> None:
    config = replace(M2, **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=what) as error:
        check(config)
    assert "--bf16" in str(error.value.remedy)
    check(config, WeightFormats())  # dense weights have no blocks


def test_the_plugins_limits_are_those_of_the_cuda_engine() -> None:
    with pytest.raises(UserError, match="head_dim 64"):
        check(replace(M2, head_dim=64), engine="tensorrt")
    check(replace(M2, head_dim=64))
