"""Ranges of a plan's inputs, its place in the bundle, and the parsed network against the manifest's list."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mm2c.engine.tensorrt.jobs import VOLUME, BuiltPlan, page_ranges, plan_jobs
from mm2c.engine.tensorrt.network_table import differences
from mm2c_runtime.manifest_tensorrt import Plan, PlanKv, PlanTensor, Profile, TensorRTProgram


def tensor(name: str, kind: Any, dtype: Any, shape: list[int | str], mode: Any = "input") -> PlanTensor:
    return PlanTensor(name=name, mode=mode, kind=kind, dtype=dtype, shape=shape)


TENSORS = [
    tensor("input_ids", "step", "i64", ["batch", "seq"]),
    tensor("past_len", "step", "i32", ["batch"]),
    tensor("block_table", "step", "i32", ["batch", "pages_of_row"]),
    tensor("k_cache.0", "cache", "bf16", ["pages", 64, 2, 128]),
    tensor("layers.0.mlp.gate.weight", "weight", "bf16", [256, 3072]),
    tensor("logits", "logits", "f32", ["batch", 512], "output"),
]
PROFILES = [
    Profile(name="decode", batch=(1, 8, 16), seq=(1, 1, 1)),
    Profile(name="prefill", batch=(1, 1, 1), seq=(1, 256, 512)),
]


def program(page: int = 64) -> TensorRTProgram:
    plan = Plan(
        name="step.0",
        graph="plans/step.0.onnx",
        wide="",
        plan=None,
        layers=1,
        profiles=PROFILES,
        tensors=TENSORS,
    )
    kv = PlanKv(layers=1, kv_heads=2, head_dim=128, page=page, dtype="bf16")
    return TensorRTProgram(version="", target=[], plans=[plan], ranks=[], kv=kv, head="gather")


def test_profiles_give_every_variable_input_its_range() -> None:
    (job,) = plan_jobs(program(), Path("/bundle"), ("9.0",), context=1000, plugins=Path("/p.so"))
    assert (job.graph, job.plan) == (Path("/bundle/plans/step.0.onnx"), Path("/bundle/plans/step.0.plan"))
    assert (job.target, job.plugins) == (("9.0",), Path("/p.so"))
    most = VOLUME // (64 * 2 * 128)
    decode, prefill = job.profiles()
    cache = ((1, 64, 2, 128), (256, 64, 2, 128), (most, 64, 2, 128))
    assert decode == {
        "input_ids": ((1, 1), (8, 1), (16, 1)),
        "past_len": ((1,), (8,), (16,)),
        "block_table": ((1, 1), (8, 16), (16, 16)),
        "k_cache.0": cache,
    }
    assert prefill["input_ids"] == ((1, 1), (1, 256), (1, 512))
    assert prefill["k_cache.0"] == cache


def test_rows_have_no_pages() -> None:
    assert page_ranges(program(page=0), 0) == {}
    with pytest.raises(ValueError, match="context"):
        page_ranges(program(), 0)


def test_a_built_plan_is_read_back_from_what_was_told() -> None:
    facts: dict[str, Any] = dict(
        bytes=7, scratch=5, seconds=0.5, peak=9, layers={"cast": 2}, precisions={"bf16": 2}, log=["so"]
    )
    built = BuiltPlan.of("decode.0", facts, cached=True)
    assert built == BuiltPlan("decode.0", 7, 5, 0.5, 9, True, {"cast": 2}, {"bf16": 2}, ("so",))
    del facts["scratch"]
    with pytest.raises(KeyError):
        BuiltPlan.of("decode.0", facts, cached=True)


def network(*tensors: tuple[str, str, list[int], str]) -> Any:
    """As the library has it: name, dtype, shape, mode."""
    values = {
        mode: [
            SimpleNamespace(name=name, dtype=SimpleNamespace(name=dtype), shape=tuple(shape))
            for name, dtype, shape, of in tensors
            if of == mode
        ]
        for mode in ("input", "output")
    }
    return SimpleNamespace(
        num_inputs=len(values["input"]),
        num_outputs=len(values["output"]),
        get_input=values["input"].__getitem__,
        get_output=values["output"].__getitem__,
    )


LISTED = [tensor("x", "hidden", "bf16", ["batch", 64]).model_dump()]
LISTED += [tensor("y", "hidden", "bf16", ["batch", 64], "output").model_dump()]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([("x", "BF16", [-1, 64], "input"), ("y", "BF16", [-1, 64], "output")], None),
        ([("x", "BF16", [-1, 64], "input"), ("y", "BF16", [-1, -1], "output")], None),  # sizes not deduced
        ([("y", "BF16", [-1, 64], "output")], "input x is not in the network"),
        (
            [("x", "FLOAT", [-1, 64], "input"), ("y", "BF16", [-1, 64], "output")],
            "input x is f32, the manifest says bf16",
        ),
        (
            [("x", "BF16", [4, 64], "input"), ("y", "BF16", [-1, 64], "output")],
            "input x has shape [4, 64], the manifest says ['batch', 64]",
        ),
        (
            [("x", "BF16", [-1, 64], "input"), ("y", "BF16", [-1, 32], "output")],
            "output y has shape [-1, 32], the manifest says ['batch', 64]",
        ),
        (
            [
                ("x", "BF16", [-1, 64], "input"),
                ("z", "BF16", [1], "input"),
                ("y", "BF16", [-1, 64], "output"),
            ],
            "the network has an input z of its own",
        ),
    ],
)
def test_a_network_is_what_the_manifest_lists(given: Any, line: str | None) -> None:
    assert differences(network(*given), LISTED) == ([line] if line else [])
