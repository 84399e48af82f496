"""The memory plan of the cuda engine against its programs' weights, and which models it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "passes"))
from hand_graph import fp8_everywhere, hand_graph, model_config

from mm2c.config import Mapping, ModelConfig, Rope, WeightFormats
from mm2c.engine.cuda_limits import check_cuda
from mm2c.errors import UserError
from mm2c.lower.cuda import lower_cuda
from mm2c.memory import plan_memory
from mm2c.passes.shard import shard
from mm2c_runtime.weights.evaluate import nbytes

M27 = ModelConfig(
    layers=62, hidden=3072, heads=48, kv_heads=8, head_dim=128, intermediate=1536, experts=256, top_k=8,
    vocab=200064, eps=1e-6, context=204800, rope=Rope(5e6, 64), bos=None, eos=(),
)  # fmt: skip
SMALL = model_config(hidden=128, head_dim=128, intermediate=512, vocab=1024, rope=Rope(1e4, 64))


@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 1), (4, 2)])
@pytest.mark.parametrize("kind", ["fp8", "bf16"])
def test_weights_are_the_program_s_to_the_byte(kind: str, tp: int, ep: int) -> None:
    stored = (("model.layers.0.mlp.gate.weight", "f32"),)
    formats = WeightFormats(fp8_everywhere(SMALL).fp8 if kind == "fp8" else frozenset(), stored)
    mapping = Mapping(tp, ep)
    lowered = lower_cuda(shard(hand_graph(SMALL, formats), SMALL, mapping))
    plan = plan_memory(SMALL, formats, mapping, weight_dtype="cuda")
    folded = {  # a graph in f32 has its norms, head, embedding and dense linears cast to f32; kernels read bf16
        name: nbytes(recipe) // (2 if _is_cast(name, recipe.dtype) else 1)
        for name, recipe in lowered.recipes.items()
    }
    assert plan.ranks[0].weights.total == sum(folded.values())


def _is_cast(name: str, dtype: str) -> bool:
    kept = name.startswith("rope.") or name.endswith(("_scale_inv", "bias", "gate.weight"))
    return dtype == "f32" and not kept


def test_a_row_takes_whole_pages() -> None:
    plan = plan_memory(SMALL, WeightFormats(), Mapping(), context=65, rows=3, page=64)
    assert plan.tokens == 3 * 128
    assert plan_memory(SMALL, WeightFormats(), Mapping(), context=64, rows=3, page=64).tokens == 3 * 64


def test_an_fp8_cache_holds_twice_the_tokens() -> None:
    formats = fp8_everywhere(M27)
    sizes = [
        plan_memory(M27, formats, Mapping(tp=4), weight_dtype="cuda", kv_dtype=dtype).ranks[0].kv_per_token
        for dtype in ("bf16", "fp8")
    ]
    assert sizes == [63_488, 31_744]


@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (4, 1), (8, 8), (4, 4)])
def test_the_released_model_is_taken(tp: int, ep: int) -> None:
    check_cuda(M27, Mapping(tp, ep))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_dim": 64}, "head_dim 64 (the kernels have 128)"),
        ({"rope": Rope(1e4, 128)}, "rotary_dim 128 (the kernels have 64)"),
        ({"hidden": 96}, "hidden size 96 (multiples of 64)"),
        ({"intermediate": 96}, "a rank's expert intermediate of 96 (multiples of 64)"),
        ({"heads": 34, "kv_heads": 2}, "34 query heads on 2 KV heads (at most 16 share one)"),
        ({"experts": 257}, "257 experts (at most 256)"),
        ({"top_k": 17}, "17 experts a token (at most 16)"),
    ],
)
def test_what_the_kernels_do_not_compute_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match="no kernels for") as refused:
        check_cuda(replace(SMALL, **changes), Mapping())  # type: ignore[arg-type]
    assert said in refused.value.what
    assert "--engine onnxruntime" in refused.value.remedy


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(UserError) as refused:
        check_cuda(replace(SMALL, head_dim=64, experts=300), Mapping())
    assert refused.value.what.count(";") == 1
    check_cuda(replace(SMALL, intermediate=128), Mapping(tp=2))
    with pytest.raises(UserError, match="a rank's expert intermediate of 32"):
        check_cuda(replace(SMALL, intermediate=128), Mapping(tp=4))
    check_cuda(replace(SMALL, intermediate=128), Mapping(tp=4, ep=4))
