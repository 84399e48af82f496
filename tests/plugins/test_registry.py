"""The library in the real TensorRT plugin registry, that of the lean runtime, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plugin_cases import CASES

LEAN = ("tensorrt_lean_bindings", "tensorrt_lean_libs")
REGISTRY = Path(__file__).parent / "lean_registry.py"
ROOT = Path(__file__).resolve().parents[2]


def python_with_tensorrt() -> str:
    """A Python that has TensorRT's lean runtime: this one or the kernel environment's."""
    kernels = Path(os.environ.get("MM2C_KERNELS") or ROOT / ".venv-kernels")
    for python in (sys.executable, str(kernels / "bin" / "python")):
        if Path(python).exists() and has_tensorrt(python):
            return python
    pytest.skip(
        "no environment has tensorrt-lean-cu13-libs and -bindings; their wheels are for Linux on x86-64"
    )


def has_tensorrt(python: str) -> bool:
    found = f"from importlib.util import find_spec; raise SystemExit(not all(map(find_spec, {LEAN!r})))"
    return subprocess.run([python, "-c", found], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def found(plugin_folder: Path) -> dict[str, Any]:
    """What the registry says of the library and makes with its creators."""
    python = python_with_tensorrt()
    attributes = {name: case.attributes for name, case in CASES.items()}
    run = subprocess.run(
        [python, str(REGISTRY), str(plugin_folder / "libmm2c_plugins.so")],
        input=json.dumps(attributes),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def test_the_registry_finds_every_creator(found: dict[str, Any]) -> None:
    assert sorted(found["creators"]) == sorted([name, "1", "mm2c"] for name in CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_registry_creates_the_plugin(found: dict[str, Any], name: str) -> None:
    plugin = found["plugins"][name]
    assert set(plugin["fields"]) >= set(CASES[name].attributes)
    for phase in ("BUILD", "RUNTIME"):
        assert plugin[phase] == {"name": name, "namespace": "mm2c", "version": "1", "capabilities": 3}


def test_a_refused_field_leaves_no_plugin(found: dict[str, Any]) -> None:
    assert found["refused"] is None
