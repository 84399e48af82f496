"""Plans against ONNX Runtime through Polygraphy's runners and comparator, as `mm2c verify` does on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from polygraphy_bundles import need_polygraphy, program_of

from mm2c.bundle.polygraphy_files import LEAST_SNR
from mm2c.errors import UserError
from mm2c.progress import Quiet
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.plan_step import choose


def runners(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with Polygraphy told that it speaks to TensorRT-RTX."""
    need_polygraphy()
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (the extra rtx)")
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    from mm2c.verify import polygraphy_runners

    return polygraphy_runners


def test_bf16_passes_and_a_wrong_network_does_not(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    module = runners(monkeypatch)
    base = pytest.importorskip("polygraphy.backend.base")

    class Rounded(base.BaseRunner):  # type: ignore[misc, name-defined]
        """In place of TensorRT's runner: f32 results rounded to bf16, with an input changed before."""

        def __init__(self, step: Any, change: str) -> None:
            super().__init__(name="TensorRT", prefix="double")
            self.step, self.change = step, change

        def activate_impl(self) -> None:
            return

        def get_input_metadata_impl(self) -> Any:
            from polygraphy.common import TensorMetadata
            from polygraphy.datatype import DataType

            found = TensorMetadata()
            types = {"bf16": DataType.BFLOAT16, "e4m3": DataType.FLOAT8E4M3FN, "f32": DataType.FLOAT32}
            types |= {"i32": DataType.INT32, "i64": DataType.INT64}
            for tensor in self.step.plan.tensors:
                if tensor.mode == "input":
                    found.add(tensor.name, types[tensor.dtype], self.step.shape(tensor))
            return found

        def infer_impl(self, feed_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            import onnxruntime

            feeds = {}
            for name, value in feed_dict.items():
                wide = {torch.bfloat16: torch.float32, torch.float8_e4m3fn: torch.float16}.get(value.dtype)
                feeds[name] = value.to(wide or value.dtype).numpy()
            if self.change:
                feeds[self.change] = feeds[self.change][..., ::-1].copy()
            session = onnxruntime.InferenceSession(module.onnxrt_graph(self.step).SerializeToString())
            names = [value.name for value in session.get_outputs()]
            made = session.run(names, feeds)
            self.inference_time = 1.0
            return {name: torch.from_numpy(value).bfloat16() for name, value in zip(names, made, strict=True)}

    step = choose(bundles["one"], "prefill.1", tokens=8)
    expected = module.reference_results(step)
    module.know_fp8()

    def ratios(change: str) -> dict[str, float]:
        found = module.results_of(Rounded(step, change), module.tensorrt_feed(step), step)
        values: dict[str, float] = module.ratios(expected, found)
        return values

    same = ratios("")
    assert set(same) == {tensor.name for tensor in step.plan.tensors if tensor.mode == "output"}
    assert min(same.values()) > 40
    for wrong in ("layers.0.mlp.experts.down_proj", "hidden.0", "layers.0.self_attn.o_proj.weight"):
        assert min(ratios(wrong).values()) < LEAST_SNR


def test_the_graph_without_collectives_builds(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = runners(monkeypatch)
    import tensorrt_rtx

    step = choose(bundles["two"], "decode.0")
    assert len(module._built(step, tensorrt_rtx)) > 10_000
    with pytest.raises(UserError, match="TensorRT cannot run"):  # there is no GPU to load it
        module.compare_step(step, tensorrt_rtx, True)


def test_every_plan_is_compared_and_summed_up(bundles: dict[str, Path]) -> None:
    from mm2c.verify import polygraphy_run
    from mm2c.verify.polygraphy_run import compare_plans, summary

    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (the extra rtx)")
    asked = []

    def double(step: Any, trt: Any, own_build: bool) -> dict[str, float]:
        asked.append((step.plan.name, step.rank.rank, own_build))
        return {
            "hidden_out.0": 31.5,
            "logits": float("nan") if step.plan.name == "prefill.1" else float("inf"),
        }

    manifest = read_manifest(bundles["one"])
    outcome = compare_plans(bundles["one"], manifest, Quiet(), compare=double)
    assert asked == [(name, 0, True) for name in ("decode.0", "decode.1", "prefill.0", "prefill.1")]
    assert [result.passed for result in outcome.results] == [True, True, True, False]
    assert not outcome.passed
    assert "1 of 4 FAILED" in summary(outcome)
    facts = json.loads(json.dumps(outcome.as_json(), allow_nan=False))
    assert facts["results"][0]["snr"] == {"hidden_out.0": 31.5, "logits": None}
    assert polygraphy_run.why_not(manifest) == "there is no GPU here"


def test_why_plans_cannot_be_run_here(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from mm2c.engine.select import Gpu
    from mm2c.verify import polygraphy_run

    monkeypatch.setattr(polygraphy_run, "find_gpu", lambda: Gpu("NVIDIA H200", "9.0"))
    manifest = read_manifest(bundles["one"])

    def changed(**update: Any) -> Manifest:
        program = program_of(bundles["one"]).model_copy(update=update)
        return manifest.model_copy(update={"tensorrt": program})

    assert "H200 has 9.0" in polygraphy_run.why_not(changed(target=["12.0"]))
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (the extra rtx)")
    assert "built by version 9.9.9" in polygraphy_run.why_not(changed(version="9.9.9"))
    monkeypatch.setattr(polygraphy_run, "find_spec", lambda name: None)
    assert polygraphy_run.why_not(manifest) == "Polygraphy is not installed"
    assert "no TensorRT plans" in polygraphy_run.why_not(manifest.model_copy(update={"tensorrt": None}))
