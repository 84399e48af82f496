"""Plans for the TensorRT engines: scratch memory beside the builder's own figures, GPUs, rows and warnings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_plan_layouts import FP8, M27
from typer.testing import CliRunner

from mm2c.cli.main import app
from mm2c.config import Engine, Mapping
from mm2c.memory import plan_memory
from mm2c.plan.ask import Ask, default_context
from mm2c.plan.engines import engine_notes, gpu_note
from mm2c.plan.fit import fit
from mm2c.plan.gpus import find_gpu
from mm2c.plan.layouts import fault_of
from mm2c.plan.scratch import GATHERED_TOKENS, dense_scratch, gathered_scratch, rtx_step
from mm2c.plan.speed import decode_step
from mm2c.request import BuildRequest

# "Total Activation Memory" that TensorRT-RTX 1.7.1's builder told for plans of two layers of M2.7, in bytes:
# (tp, context, rows) of decode steps with gathered experts, (tp, context, rows, tokens) of steps with all of them
GATHERED = {
    (4, 32768, 1): 94_793_728,
    (4, 32768, 8): 497_307_136,
    (4, 32768, 16): 956_862_976,
    (8, 32768, 16): 490_051_072,
    (4, 8192, 16): 947_741_184,
    (4, 131072, 1): 173_581_312,
    (4, 131072, 16): 2_236_764_672,
}
DENSE = {
    (4, 32768, 1, 64): 3_132_750_336,
    (4, 32768, 1, 512): 3_589_616_128,
    (4, 32768, 1, 1024): 4_491_881_472,
    (4, 32768, 1, 2048): 7_127_381_504,
    (8, 32768, 1, 512): 2_201_816_064,
    (8, 32768, 1, 2048): 5_632_039_936,
    (4, 8192, 1, 512): 3_426_233_856,
    (4, 131072, 1, 512): 4_839_508_992,
    (4, 131072, 1, 2048): 10_292_382_208,
    (4, 8192, 32, 32): 3_324_729_344,
    (4, 8192, 64, 64): 4_210_569_216,
    (4, 32768, 32, 32): 4_752_939_008,
    (4, 32768, 64, 64): 5_840_154_624,
    (4, 131072, 32, 32): 8_012_109_824,
}


def planned(engine: Engine, rows: int = 8, context: int = 32768) -> Ask:
    return Ask(M27, FP8, context, rows, engine=engine)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["plan", "m2.7", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM2C_CACHE", str(tmp_path_factory.getbasetemp() / "plan-cache"))


@pytest.mark.parametrize("case", GATHERED)
def test_gathered_experts_take_what_the_builder_says(case: tuple[int, int, int]) -> None:
    tp, context, rows = case
    assert 0.99 < gathered_scratch(M27, Mapping(tp), context, rows) / GATHERED[case] < 1.1


@pytest.mark.parametrize("case", DENSE)
def test_all_experts_take_what_the_builder_says(case: tuple[int, int, int, int]) -> None:
    tp, context, rows, tokens = case
    assert 0.99 < dense_scratch(M27, Mapping(tp), context, rows, tokens) / DENSE[case] < 1.22


def test_the_largest_step_decides() -> None:
    few, many = (rtx_step(M27, Mapping(4), context=32768, rows=rows, chunk=64) for rows in (8, 64))
    assert few.workspace == dense_scratch(M27, Mapping(4), 32768, 1, 64)  # the prefill step
    assert many.workspace == dense_scratch(M27, Mapping(4), 32768, 64, 64) > few.workspace
    assert few.activations == 0


def test_weights_are_those_of_the_cuda_engine_and_rows_are_whole() -> None:
    kinds = [
        plan_memory(M27, FP8, Mapping(4), context=100, weight_dtype="cuda", engine=engine)
        for engine in ("cuda", "tensorrt-rtx", "tensorrt")
    ]
    assert kinds[0].ranks[0].weights == kinds[1].ranks[0].weights == kinds[2].ranks[0].weights
    assert planned("tensorrt-rtx", rows=0, context=100).required_tokens(Mapping(4)) == 8 * 100
    assert planned("tensorrt", rows=0, context=100).required_tokens(Mapping(4)) == 128  # two pages


def test_a_captured_step_shares_the_scratch() -> None:
    card = find_gpu("rtx-pro-6000")
    own = fit(planned("tensorrt-rtx"), card, Mapping(4))
    assert own.fits
    assert (
        own.tightest.reserve
        < fit(planned("cuda"), card, Mapping(4)).tightest.reserve + own.tightest.rank.step
    )
    assert not fit(planned("tensorrt-rtx", rows=20), card, Mapping(4)).fits


def test_dense_steps_move_every_expert_five_times() -> None:
    """The experts in FP8 once, and twice as many bytes written and read: 157 ms of four GPUs at 64 rows."""
    card = find_gpu("rtx-pro-6000")
    many, one = (decode_step(fit(planned("tensorrt-rtx", rows), card, Mapping(4))) for rows in (64, 1))
    assert many.memory_seconds == pytest.approx(0.157, abs=0.02)
    assert one.memory_seconds < 0.01
    fast = decode_step(fit(planned("cuda", 64), card, Mapping(4)))
    assert many.memory_seconds > 3 * fast.memory_seconds


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ("h200", "Hopper"),
        ("b200", "datacenter Blackwell"),
        ("a100", "has no FP8"),
        ("mi300x", "AMD"),
        ("rtx-pro-6000", ""),
        ("l40s", ""),
    ],
)
def test_gpus_that_the_library_knows(gpu: str, words: str) -> None:
    note = gpu_note(find_gpu(gpu), "tensorrt-rtx", FP8)
    assert words in note
    assert bool(note) == bool(words)
    if words == "Hopper":
        assert "--engine tensorrt builds for it on its own machine, --engine cuda" in note
    assert gpu_note(find_gpu("h200"), "tensorrt", FP8) == ""


def test_notes_say_what_suits_it() -> None:
    notes = " ".join(engine_notes(planned("tensorrt-rtx")))
    assert f"more than {GATHERED_TOKENS} rows" in notes
    assert "small batches" in notes
    assert "--engine cuda is the fast path" in notes
    assert "--defer-plan" in " ".join(engine_notes(planned("tensorrt")))
    assert engine_notes(planned("cuda")) == ()


def test_defaults_are_those_of_a_build() -> None:
    for engine in ("cuda", "tensorrt-rtx", "tensorrt"):
        assert default_context(M27, engine) == BuildRequest().options(M27, engine).context


def test_layouts_that_have_no_graph_are_left_out() -> None:
    assert fault_of(M27, Mapping(2, 4, 2), "cuda", FP8) is None
    for engine in ("tensorrt", "tensorrt-rtx"):
        fault = fault_of(M27, Mapping(2, 4, 2), engine, FP8)
        assert fault is not None
        assert "attention-DP" in fault.what


def test_a_plan_through_the_command_line() -> None:
    text = run("--gpu", "rtx-pro-6000", "--tp", 4, "--engine", "tensorrt-rtx", "--batch", 12)
    for word in (
        "small batches",
        "scratch",
        "--engine tensorrt-rtx --target sm120 --max-rows 12",
        "a step moves",
    ):
        assert word in text
    hopper = run("--gpu", "h200", "--tp", 4, "--engine", "tensorrt-rtx")
    assert "does not build for Hopper" in hopper
    assert "mm2c build CHECKPOINT" not in hopper
    assert "no engine" in run("--engine", "tensorrt-rtx")
    assert "--engine tensorrt " in run("--gpu", "h200", "--tp", 4, "--engine", "tensorrt") + " "


def test_json_has_the_engine_and_its_notes() -> None:
    arguments = ["plan", "m2.7", "--gpu", "h200", "--tp", "4", "--engine", "tensorrt-rtx", "--json"]
    found: dict[str, Any] = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert found["asked"]["engine"] == "tensorrt-rtx"
    assert found["asked"]["context"] == 32768
    assert "Hopper" in found["gpu"]["note"]
    assert any("small batches" in note for note in found["notes"])
    room = found["per_gpu"][0]
    parts = ("weights", "activations", "workspace", "buffers", "reserve", "system", "collectives", "free")
    assert sum(room[f"{part}_bytes"] for part in parts) == room["memory_bytes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--engine", "tensorrt-rtx", "--kv-dtype", "fp8"), "KV cache in bf16"),
        (("--engine", "tensorrt-rtx", "--guide"), "--guide is about the cuda engine"),
        (("--engine", "tensorrt-rtx", "--gpu", "h200", "--tp", 2, "--ep", 4, "--dp", 2), "attention-DP"),
        (("--engine", "tpu"), "cuda (the default), tensorrt-rtx, tensorrt or onnxruntime"),
    ],
)
def test_refusals(arguments: tuple[object, ...], words: str) -> None:
    assert words in run(*arguments, code=2)
