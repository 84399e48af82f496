"""What a worker's end means to the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mm2c.engine.tensorrt.failures import failure
from mm2c.engine.tensorrt.jobs import PlanJob
from mm2c.engine.tensorrt.library import Library
from mm2c.engine.tensorrt.processes import Ended
from mm2c.errors import UserError
from mm2c_runtime.manifest_tensorrt import Plan

LIBRARY = Library("tensorrt-rtx", "tensorrt_rtx", "1.7.1")
SPEC = Plan(name="prefill.1", graph="g", wide="", plan=None, layers=31, profiles=[], tensors=[])


def error(status: int, refused: str | None = None, *problems: str, log: str = "") -> Exception:
    message: dict[str, Any] | None = {"refused": refused, "problems": list(problems)} if refused else None
    job = PlanJob("prefill.1", Path("/b/g.onnx"), Path("/tmp/g.plan"), SPEC, ("8.6",))
    return failure(job, LIBRARY, Ended(status, message, 3 << 30, "Compiling", log))


@pytest.mark.parametrize(
    ("refused", "problem", "what", "where", "remedy"),
    [
        (
            "graph",
            "node a (B): no",
            "does not take the graph of plan prefill.1: node a (B): no",
            "g.onnx",
            "defect",
        ),
        ("table", "input x is f32", "understands another graph for plan prefill.1", "g.onnx", "'.[rtx]'"),
        ("disk", "No space left", "the disk is full (", "/tmp", "-o"),
        ("memory", "out of memory", "has not enough memory", "g.onnx", "--layers-per-plan"),
        (
            "build",
            "Error Code 2: OutOfMemory (68719476736)",
            "has not enough memory",
            "g.onnx",
            "--layers-per-plan",
        ),
        (
            "build",
            "Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: fp8_e4m3",
            "for compute capability 8.6",
            "--target",
            "8.9 or 12.0",
        ),
        ("build", "no tactic", "did not build plan prefill.1: no tactic", "g.onnx", "--layers-per-plan"),
        ("plugins", "no such library", "cannot have its plugins: no such library", "None", ""),
    ],
)
def test_refusals(refused: str, problem: str, what: str, where: str, remedy: str) -> None:
    found = error(4, refused, problem)
    assert isinstance(found, UserError)
    assert what in found.what
    assert where in found.where
    assert remedy in found.remedy


def test_a_crash_tells_what_was_said_before() -> None:
    found = error(-11, log="error: one\nerror: two")
    assert isinstance(found, UserError)
    assert "TensorRT-RTX 1.7.1 crashed (SIGSEGV) while it built plan prefill.1 of 31 layers" in found.what
    assert "    error: two" in found.what
    killed = error(-9)
    assert "was killed (SIGKILL) with 3072 MiB in memory (phase: Compiling)" in str(killed)


def test_a_defect_of_the_worker_is_no_user_s_mistake() -> None:
    found = error(1, log="Traceback ...")
    assert isinstance(found, RuntimeError)
    assert "Traceback ..." in str(found)
