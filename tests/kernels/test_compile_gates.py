"""Ahead-of-time compilation: what ``make plugins`` built passes every gate, and the compiler builds what changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mm2c_plugins.kernels import catalogue, compile, cubin, report, toolchain

BUILD = Path(os.environ.get("MM2C_PLUGINS_BUILD", Path(catalogue.__file__).parents[1] / "build"))
SMALL = "qk_sum_squares"


@pytest.fixture(scope="module")
def built() -> list[dict[str, Any]]:
    records = compile.read_records(BUILD)
    assert records, f"nothing is built in {BUILD}: run make plugins"
    return records


@pytest.mark.parametrize("sm", catalogue.SMS)
def test_the_build_is_complete_and_of_these_sources(built: list[dict[str, Any]], sm: int) -> None:
    wanted = {task.variant.name: task.key for task in cubin.plan(sm, None, debug=False)}
    there = {record["name"]: record["key"] for record in built if record["sm"] == sm}
    assert there == wanted
    assert {record["kernel"] for record in built if record["sm"] == sm} == set(catalogue.kernel_names())


def test_no_gate_is_missed(built: list[dict[str, Any]]) -> None:
    totals = report.summary(built, {sm: catalogue.load_tiles(sm) for sm in catalogue.SMS})
    assert totals["missed_gates"] == []


def test_cubins_are_elf_files_of_the_recorded_size(built: list[dict[str, Any]]) -> None:
    for record in built:
        content = (BUILD / record["cubin"]).read_bytes()
        assert content[:4] == b"\x7fELF"
        assert len(content) == record["bytes"]


def test_kernels_that_depend_on_others_wait_for_them(built: list[dict[str, Any]]) -> None:
    """PDL is on from sm_90 and nowhere else: griddepcontrol does not exist before."""
    for record in built:
        if "PDL" in record["constants"]:
            assert record["constants"]["PDL"] == int(record["sm"] >= 90), record["name"]


def run_compile(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mm2c_plugins.kernels.compile",
        "--out",
        str(out),
        "--sm",
        "80",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_only_what_changed_is_built_again(tmp_path: Path) -> None:
    first = run_compile(tmp_path, "--kernel", SMALL, "--jobs", "1")
    assert first.returncode == 0, first.stderr
    assert re.search(r"[1-9]\d* compiled, 0 failed", first.stderr)
    record = compile.read_records(tmp_path)[0]
    assert record["ptx_version"] == toolchain.versions()["ptx"]
    assert record["parameters"] == len(record["declared"])

    assert "compiled" not in run_compile(tmp_path, "--kernel", SMALL).stderr
    (tmp_path / record["cubin"]).write_bytes(b"cut short")
    again = run_compile(tmp_path, "--kernel", SMALL)
    assert "1 compiled, 0 failed" in again.stderr
    assert (tmp_path / record["cubin"]).stat().st_size == record["bytes"]

    stray = tmp_path / "cubins" / "sm_80" / "gone.cubin"
    stray.touch()
    content = json.loads((tmp_path / "kernels.json").read_text())
    content["kernels"][0]["key"] = "of other sources"
    (tmp_path / "kernels.json").write_text(json.dumps(content))
    assert "1 compiled, 0 failed" in run_compile(tmp_path, "--kernel", SMALL).stderr
    assert not stray.exists()


def test_a_wrong_assembler_ends_the_build_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM2C_PTXAS", str(tmp_path / "none"))
    failed = run_compile(tmp_path, "--kernel", SMALL)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: no ptxas of CUDA 13.0")
    assert "Traceback" not in failed.stderr


def test_a_function_and_its_parameters_must_agree() -> None:
    variant = catalogue.Variant("k", "k.a", {"BM": 16}, multiples=("T",))
    cubin._check_names(variant, ["x", "T", "BM"], ["x", "T"], ["BM"])
    with pytest.raises(catalogue.CatalogueError, match="its function takes x, BM"):
        cubin._check_names(variant, ["x", "BM"], ["x", "T"], ["BM"])
    with pytest.raises(catalogue.CatalogueError, match=r"multiples of k\.a are no parameters: \['T'\]"):
        cubin._check_names(variant, ["x", "BM"], ["x"], ["BM"])


def test_a_kernels_sources_include_what_it_imports() -> None:
    names = [path.name for path in cubin.source_files("fp8_linear")]
    assert names == ["e4m3.py", "fp8_linear.py"]


def test_matrix_products_are_read_from_the_ir() -> None:
    ir = """
    %a = tt.dot %x, %y, %z, inputPrecision = tf32 : tensor<16x128xbf16> * tensor<128x32xbf16> -> tensor<16x32xf32>
    %b = tt.dot %x, %y, %z : tensor<4x16x64xf16> * tensor<4x64x8xf16> -> tensor<4x16x8xf32>
    """
    assert cubin.matrix_products(ir) == [
        {"m": 16, "n": 32, "k": 128, "type": "bf16"},
        {"m": 16, "n": 8, "k": 64, "type": "f16"},
    ]
