"""Plans that TensorRT-RTX builds here, without a GPU: what comes out, the cache, and graphs that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mm2c.bundle.cache import StageCache
from mm2c.errors import UserError
from mm2c_runtime.manifest_tensorrt import PlanKv, TensorRTProgram


@pytest.fixture(scope="module")
def library() -> Any:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install '.[rtx]'")
    from mm2c.engine.tensorrt.library import find_library

    return find_library("tensorrt-rtx")


class Counted:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.total = self.done = 0

    def stage(self, title: str, total: int | None = None) -> Any:
        self.titles.append(title)
        self.total = total or 0
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def advance(self, amount: int = 1) -> None:
        assert amount >= 0
        self.done += amount

    def note(self, text: str) -> None:
        return


def test_a_plan_is_built_once_and_then_found(library: Any, tmp_path: Path) -> None:
    from small_plan import linear_job

    from mm2c.engine.tensorrt.build import build_plans

    cache, progress = StageCache(tmp_path / "cache", capacity=1 << 30), Counted()
    jobs = [linear_job(tmp_path), linear_job(tmp_path, "prefill.0", rows=64)]
    built = build_plans(jobs, library, cache=cache, progress=progress)
    assert [plan.name for plan in built] == ["decode.0", "prefill.0"]
    assert progress.titles == [f"Building 2 plans with {library.name}"]
    assert progress.done == progress.total == 200
    for job, plan in zip(jobs, built, strict=True):
        assert not plan.cached
        assert plan.bytes == job.plan.stat().st_size > 1000
        assert plan.layers["dequantize"] == plan.layers["matrix_multiply"] == 1
        assert plan.precisions["bf16"] >= 2
        assert plan.seconds > 0
        assert plan.peak > 100 << 20
    first = [job.plan.read_bytes() for job in jobs]
    assert first[0] != first[1]
    for job in jobs:
        job.plan.unlink()
    again = build_plans(jobs, library, cache=cache, progress=progress)
    assert all(plan.cached for plan in again)
    assert [job.plan.read_bytes() for job in jobs] == first
    assert [plan.layers for plan in again] == [plan.layers for plan in built]
    named = sorted(path.name for path in tmp_path.iterdir())
    assert named == ["cache", "decode.0.onnx", "decode.0.plan", "prefill.0.onnx", "prefill.0.plan"]


def test_equal_graphs_give_equal_plans_and_other_targets_other_ones(library: Any, tmp_path: Path) -> None:
    from small_plan import linear_job

    from mm2c.engine.tensorrt.build import build_plans

    cache = StageCache(tmp_path / "cache", capacity=1 << 30)
    targets = [("12.0",), ("8.9", "12.0", "12.1")]
    jobs = [linear_job(tmp_path, f"p{i}", target=target) for i, target in enumerate([*targets, ("12.0",)])]
    plans = build_plans(jobs[:2], library, cache=cache)
    uncached = build_plans(jobs[2:], library)
    assert not any(plan.cached for plan in [*plans, *uncached])
    data = [job.plan.read_bytes() for job in jobs]
    assert data[0] == data[2]
    assert data[0] != data[1]


def test_a_damaged_entry_is_built_again(library: Any, tmp_path: Path) -> None:
    from small_plan import linear_job

    from mm2c.engine.tensorrt.build import build_plans

    cache, job = StageCache(tmp_path / "cache", capacity=1 << 30), linear_job(tmp_path)
    build_plans([job], library, cache=cache)
    data = job.plan.read_bytes()
    (entry,) = (tmp_path / "cache" / "plan").iterdir()
    (entry / "plan").write_bytes(data[:100])
    assert not build_plans([job], library, cache=cache)[0].cached
    assert job.plan.read_bytes() == data


def test_the_program_gets_its_plans(library: Any, tmp_path: Path) -> None:
    from small_plan import linear_job

    from mm2c.engine.tensorrt.build import build_program

    job = linear_job(tmp_path)
    kv = PlanKv(layers=1, kv_heads=1, head_dim=128, page=0, dtype="bf16")
    program = TensorRTProgram(version="", target=[], plans=[job.spec], ranks=[], kv=kv, head="gather")
    assert program.deferred
    cache = StageCache(tmp_path / "cache", capacity=1 << 30)
    done, made = build_program(program, tmp_path, library, ("8.9", "12.0"), cache, Counted())
    assert made
    assert (done.version, done.target, done.deferred) == (library.version, ["8.9", "12.0"], False)
    assert (tmp_path / str(done.plans[0].plan)).is_file()
    assert not build_program(program, tmp_path, library, ("8.9", "12.0"), cache, Counted())[1]


@pytest.mark.parametrize(
    ("change", "what", "where"),
    [
        ({"data": b""}, "no graph with outputs", "decode.0.onnx"),
        ({"data": b"no ONNX at all"}, "Failed to parse the ONNX model", "decode.0.onnx"),
        ({"op": "NoSuchOperator"}, r"dequantize \(NoSuchOperator\)", "decode.0.onnx"),
        ({"drop": "s"}, "the network has an input s of its own", "decode.0.onnx"),
        (
            {"shape": "x"},
            r"input x has shape \[-1, 256\], the manifest says \['batch', 128\]",
            "decode.0.onnx",
        ),
        ({"target": ("8.6",)}, r"does not build plan decode.0 for compute capability 8.6", "--target"),
        ({"target": ("9.0",)}, r"does not build plan decode.0 for compute capability 9.0", "--target"),
    ],
)
def test_what_the_library_refuses(
    library: Any, tmp_path: Path, change: dict[str, Any], what: str, where: str
) -> None:
    from small_plan import linear_graph, linear_job, linear_tensors

    from mm2c.engine.tensorrt.build import build_plans

    data = change.get("data", linear_graph(change.get("op", "TRT_BlockDequantize")))
    tensors = [tensor for tensor in linear_tensors() if tensor.name != change.get("drop")]
    tensors = [
        tensor.model_copy(update={"shape": ["batch", 128]}) if tensor.name == change.get("shape") else tensor
        for tensor in tensors
    ]
    job = linear_job(tmp_path, data=data, tensors=tensors, target=change.get("target", ("12.0",)))
    with pytest.raises(UserError, match=what) as refused:
        build_plans([job], library)
    assert where in refused.value.where
    assert refused.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["decode.0.onnx"]


def test_weights_in_bf16_are_built_for_gpus_without_fp8(library: Any, tmp_path: Path) -> None:
    from small_plan import linear_job

    from mm2c.engine.tensorrt.build import build_plans
    from mm2c.engine.tensorrt.targets import resolve_target

    portable = resolve_target("tensorrt-rtx", "portable", fp8=False)
    assert "8.6" in portable
    (plan,) = build_plans([linear_job(tmp_path, fp8=False, target=portable)], library)
    assert "dequantize" not in plan.layers
