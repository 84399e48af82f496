"""`mm2c build --finish`: a deferred bundle gets its plans, whole or not at all.

The module ``tensorrt`` is NVIDIA's own of 11.4; the builder behind it is TensorRT-RTX's, which makes plans without a
GPU and takes the bodies of plugin nodes (see fixtures/tensorrt11_module.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resealed import reseal
from tensorrt11_module import gpu_stand_in, made, python_with_bindings

from mm2c.engine.plugin_library import NAMES, library_folder
from mm2c.engine.tensorrt import finish
from mm2c.engine.tensorrt.finish import finish_bundle
from mm2c.engine.tensorrt.library import Library
from mm2c.errors import UserError
from mm2c.pipeline import BuildRequest, build_bundle
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest_file import read_bundle, read_manifest
from mm2c_runtime.manifest_tensorrt import TensorRTProgram

LIBRARY = Library("tensorrt", "tensorrt", "11.4.0.106")
MM2C = "from mm2c.cli.main import main; main()"


@pytest.fixture(scope="module")
def deferred(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plans, of two layers and one; do not write to it."""
    if not (library_folder() / NAMES[0]).exists():
        pytest.skip("no plugin library: `make plugins` builds it")
    output = tmp_path_factory.mktemp("deferred") / "bundle"
    request = BuildRequest(
        source=str(tiny_m2 / "config.json"), output=output, engine="tensorrt", config_only=True, defer_plan=True,
        tp=2, context=256, max_rows=4, layers_per_plan=2,
    )  # fmt: skip
    build_bundle(request)
    return output


@pytest.fixture
def bundle(deferred: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(deferred, tmp_path / "bundle"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A machine with TensorRT and a GPU, whose builder writes the graph's name; what it was asked to build."""
    asked: list[tuple[str, ...]] = []

    def build(
        program: TensorRTProgram,
        folder: Path,
        library: Library,
        target: Any,
        cache: Any,
        progress: Any,
        **more: Any,
    ) -> tuple[TensorRTProgram, bool]:
        asked.append(tuple(plan.name for plan in program.plans))
        plans = []
        for plan in program.plans:
            path = f"plans/{plan.name}.plan"
            (folder / path).write_text(plan.name)
            plans.append(plan.model_copy(update={"plan": path, "scratch": 7}))
        return program.model_copy(
            update={"version": library.version, "target": ["9.0"], "plans": plans}
        ), True

    monkeypatch.setattr(finish, "check_finishing", lambda ranks: (LIBRARY, "9.0"))
    monkeypatch.setattr(finish, "check_plugins", lambda *_, **__: None)
    monkeypatch.setattr(finish, "build_program", build)
    return asked


def test_the_manifest_names_the_plans(bundle: Path, machine: list[tuple[str, ...]]) -> None:
    before = read_manifest(bundle)
    report = finish_bundle(bundle)
    after = read_bundle(bundle)
    assert (report.up_to_date, report.made, report.version, report.target) == (
        False,
        True,
        "11.4.0.106",
        ("9.0",),
    )
    assert machine == [("step.0", "step.1")]
    assert after.tensorrt is not None
    assert before.tensorrt is not None
    assert not after.tensorrt.deferred
    assert [plan.plan for plan in after.tensorrt.plans] == ["plans/step.0.plan", "plans/step.1.plan"]
    assert after.libraries == {**before.libraries, "tensorrt": "11.4.0.106"}
    assert after.files.keys() - before.files.keys() == {"plans/step.0.plan", "plans/step.1.plan"}
    assert after.build_key == before.build_key  # so that the same build is up to date
    plain = {"version": "", "target": [], "plans": before.tensorrt.plans}
    assert after.tensorrt.model_copy(update=plain) == before.tensorrt
    assert after.tensorrt.plans[0].model_copy(update={"plan": None, "scratch": 0}) == before.tensorrt.plans[0]


def test_a_finished_bundle_is_up_to_date(bundle: Path, machine: list[tuple[str, ...]]) -> None:
    finish_bundle(bundle)
    content = (bundle / "manifest.json").read_bytes()
    report = finish_bundle(bundle)
    assert report.up_to_date
    assert "up to date" in report.lines()[0]
    assert len(machine) == 1
    assert (bundle / "manifest.json").read_bytes() == content


def test_an_interrupted_run_leaves_the_bundle_deferred(
    bundle: Path, machine: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (bundle / "manifest.json").read_bytes()
    good = finish.build_program

    def stopped(program: TensorRTProgram, folder: Path, *_: Any, **__: Any) -> Any:
        (folder / "plans" / "step.0.plan").write_text("of another run")
        raise KeyboardInterrupt

    monkeypatch.setattr(finish, "build_program", stopped)
    with pytest.raises(KeyboardInterrupt):
        finish_bundle(bundle)
    assert (bundle / "manifest.json").read_bytes() == content
    read_bundle(bundle)
    monkeypatch.setattr(finish, "build_program", good)
    finish_bundle(bundle)
    read_bundle(bundle)
    assert (bundle / "plans" / "step.0.plan").read_text() == "step.0"
    assert not list(bundle.glob(".manifest*"))


def test_a_manifest_that_cannot_be_written_stays(
    bundle: Path, machine: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (bundle / "manifest.json").read_bytes()

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finish.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        finish_bundle(bundle)
    assert (bundle / "manifest.json").read_bytes() == content
    assert not list(bundle.glob(".manifest*"))


def _edit_graph(bundle: Path) -> None:
    path = bundle / "plans" / "step.0.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _edit_manifest(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"max_rows": 4', '"max_rows": 8'))


def _lose_graph(bundle: Path) -> None:
    (bundle / "plans" / "step.1.onnx").unlink()


def _swap_library(bundle: Path) -> None:
    path = bundle / "plugins" / NAMES[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_edit_graph, r"plans/step\.0\.onnx was altered"),
        (_edit_manifest, r"manifest\.json was altered"),
        (_lose_graph, r"plans/step\.1\.onnx cannot be read"),
        (_swap_library, rf"plugins/{NAMES[0]} was altered"),
    ],
)
def test_an_altered_bundle_is_refused(
    bundle: Path, machine: list[tuple[str, ...]], change: Callable[[Path], None], complaint: str
) -> None:
    change(bundle)
    with pytest.raises(BundleError, match=complaint):
        finish_bundle(bundle)
    assert machine == []


def test_a_graph_that_the_plugins_do_not_take_is_refused(
    bundle: Path, machine: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resealed, as only a defect or another version of mm2c could write it; TensorRT is not asked."""
    import onnx

    monkeypatch.undo()
    monkeypatch.setattr(finish, "check_finishing", lambda ranks: (None, "9.0"))
    path = bundle / "plans" / "step.1.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "top_k":
                attribute.i = 99
    onnx.save(model, path)
    reseal(bundle, "plans/step.1.onnx")
    with pytest.raises(UserError, match=r"\(M2MoeFp8\): attribute top_k must be from 1 to 16, got 99"):
        finish_bundle(bundle)


def test_two_at_once(bundle: Path, machine: list[tuple[str, ...]]) -> None:
    folder = os.open(bundle, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is building the plans"):
        finish_bundle(bundle)
    os.close(folder)
    finish_bundle(bundle)


def test_what_is_no_deferred_bundle(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        finish_bundle(tmp_path)
    manifest = read_manifest(bundle).model_copy(update={"engine": "cuda", "tensorrt": None}).sealed()
    (bundle / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(UserError, match="a bundle of the cuda engine has no plans"):
        finish_bundle(bundle)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_bundle_that_may_not_be_written(bundle: Path, machine: list[tuple[str, ...]]) -> None:
    (bundle / "plans").chmod(0o500)
    with pytest.raises(UserError, match="may not be written"):
        finish_bundle(bundle)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    python_with_bindings()
    return made(tmp_path_factory.mktemp("tensorrt11"), builder=True)


@pytest.fixture
def command(packages: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`mm2c` with arguments, where the module tensorrt and what stands in for a GPU are."""
    stand_in = gpu_stand_in(tmp_path / "gpu", "NVIDIA H100 80GB HBM3", "9.0")
    environment = {
        **os.environ,
        **stand_in,
        "PYTHONPATH": str(packages),
        "MM2C_CACHE": str(tmp_path / "cache"),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python_with_bindings(), "-c", MM2C, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def test_nodes_that_became_functions_are_found_out(
    bundle: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The library is in TensorRT's registry, the parser asks another: it takes every body, and says nothing."""
    content = (bundle / "manifest.json").read_bytes()
    result = command("build", "--finish", str(bundle))
    assert result.returncode == 2, result.stdout + result.stderr
    assert "made plugins of 0 nodes of" in result.stderr
    assert "M2MoeFp8, M2PagedAttention" in result.stderr
    assert (bundle / "manifest.json").read_bytes() == content
    assert not list((bundle / "plans").glob("*.plan*"))


def test_plans_are_built_through_the_real_interface(
    bundle: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Without plugins, so that bodies are what is asked for: flags, profiles, monitor, timing cache and plan."""
    manifest = read_manifest(bundle)
    assert manifest.tensorrt is not None
    program = manifest.tensorrt.model_copy(update={"plugins": None})
    sealed = manifest.model_copy(update={"tensorrt": program}).sealed()
    (bundle / "manifest.json").write_text(sealed.model_dump_json())
    again = Path(shutil.copytree(bundle, tmp_path / "again"))

    result = command("build", "--finish", str(bundle), "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert (report["version"], report["target"], report["plans"], report["made"]) == (
        "11.4.0.106",
        ["9.0"],
        2,
        True,
    )
    finished = read_bundle(bundle).tensorrt
    assert finished is not None
    assert all(plan.scratch > 0 for plan in finished.plans)

    result = command("build", "--finish", str(again))
    assert "reused    2 plan(s) of TensorRT 11.4.0.106 for 9.0 (from the cache)" in result.stdout
    for plan in finished.plans:
        assert plan.plan is not None
        assert (again / plan.plan).read_bytes() == (bundle / plan.plan).read_bytes()
    assert "up to date" in command("build", "--finish", str(again)).stdout
