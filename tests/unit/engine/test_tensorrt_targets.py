"""The GPUs that plans are built for, and what is said of the others."""

from __future__ import annotations

import pytest

from mm2c.engine.select import Gpu
from mm2c.engine.tensorrt import targets
from mm2c.engine.tensorrt.targets import resolve_target, target_name
from mm2c.errors import UserError

RTX = "tensorrt-rtx"


@pytest.mark.parametrize(
    ("asked", "fp8", "found"),
    [
        ("sm120", True, ("12.0",)),
        ("12.0", True, ("12.0",)),
        ("SM_89", True, ("8.9",)),
        ("sm120,sm89", True, ("8.9", "12.0")),
        ("sm121, sm120", True, ("12.0", "12.1")),
        ("sm86", False, ("8.6",)),
        ("portable", True, ("8.9", "12.0", "12.1")),
        ("portable", False, ("8.0", "8.6", "8.9", "12.0", "12.1")),
    ],
)
def test_names_of_targets(asked: str, fp8: bool, found: tuple[str, ...]) -> None:
    assert resolve_target(RTX, asked, fp8=fp8) == found


@pytest.mark.parametrize(
    ("asked", "fp8", "what", "remedy"),
    [
        (
            "sm90",
            True,
            "no plan for sm90: TensorRT-RTX does not build for Hopper",
            "--engine tensorrt builds",
        ),
        ("sm90", True, "H100, H200", "--engine cuda runs there too"),
        ("10.0", False, "datacenter Blackwell", "--engine cuda"),
        ("sm86", True, "compute capability 8.6 has no FP8", "--bf16 stores them"),
        ("sm75", False, "Turing has no bf16", "--target sm80, sm86, sm89, sm120, sm121 or portable"),
        ("sm61", True, "does not build for compute capability 6.1", "--engine onnxruntime"),
        ("sm120,sm90", True, "Hopper", "--target sm89, sm120, sm121 or portable"),
        ("hopper", True, "no target is called 'hopper'", "one of: sm89, sm120, sm121, portable"),
        ("", True, "no target is called ''", "portable"),
    ],
)
def test_targets_that_there_are_no_plans_for(asked: str, fp8: bool, what: str, remedy: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve_target(RTX, asked, fp8=fp8)
    assert what in refused.value.what
    assert remedy in refused.value.remedy
    assert refused.value.where == f"--target {asked}"


def test_without_a_target_this_machine_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[Gpu | None] = [None]
    monkeypatch.setattr(targets, "find_gpu", lambda: here[0])
    assert resolve_target(RTX, None, fp8=True) == ("8.9", "12.0", "12.1")
    here[0] = Gpu("NVIDIA RTX PRO 6000", "12.0")
    assert resolve_target(RTX, None, fp8=True) == ("12.0",)
    here[0] = Gpu("NVIDIA H200", "9.0")
    with pytest.raises(UserError, match="Hopper") as refused:
        resolve_target(RTX, None, fp8=True)
    assert "NVIDIA H200, the GPU of this machine" in refused.value.where
    assert resolve_target(RTX, "portable", fp8=True) == ("8.9", "12.0", "12.1")


def test_tensorrt_takes_the_gpu_that_it_runs_on() -> None:
    assert resolve_target("tensorrt", None, fp8=True) == ()
    with pytest.raises(UserError, match="builds for the GPU that it runs on") as refused:
        resolve_target("tensorrt", "sm90", fp8=True)
    assert "--finish" in refused.value.remedy


def test_names_for_people() -> None:
    assert target_name(("8.9", "12.0")) == "sm89, sm120"
    assert target_name(()) == "this machine's GPU"
