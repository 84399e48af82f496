"""The project's own promises: packages listed, layers respected, nothing of one machine inside."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PREFIXES = {"compiler": "mm2c", "plugins": "mm2c_plugins", "model_repo/runtime": "mm2c_runtime"}


def _imports(path: Path, *, at_once: bool = False) -> set[str]:
    """Modules that a file imports; ``at_once``: when it is imported itself, not only in a function or for types."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_package_is_listed_in_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'"(mm2c[\w.]*)"', text.split("packages = [")[1].split("]")[0]))
    on_disk = {"mm2c_model_repo"}
    for folder, name in PREFIXES.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            on_disk.add(".".join((name, *parts)))
    assert listed == on_disk


def test_the_runtime_never_imports_the_compiler_nor_transformers() -> None:
    for path in (ROOT / "model_repo").rglob("*.py"):
        tops = {name.split(".")[0] for name in _imports(path)}
        assert not tops & {"mm2c", "transformers"}, path


def test_only_the_executors_of_gpus_need_torch() -> None:
    """Serving on ONNX Runtime works without torch; elsewhere it is imported when an engine for GPUs is asked for."""
    executors = ROOT / "model_repo" / "runtime" / "executors"
    for path in (ROOT / "model_repo").rglob("*.py"):
        if not {executors / "cuda", executors / "tensorrt"}.intersection(path.parents):
            assert "torch" not in {name.split(".")[0] for name in _imports(path, at_once=True)}, path


@pytest.mark.parametrize(
    "module",
    ["mm2c.cli.main", "mm2c.checkpoint", "mm2c.pipeline", "mm2c_runtime.manifest", "mm2c_runtime.bundle"],
)
def test_start_up_imports_neither_torch_nor_transformers(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'onnxruntime') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_files_stay_small() -> None:
    long = {}
    for path in [*(ROOT / "compiler").rglob("*.py"), *(ROOT / "model_repo").rglob("*.py")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 350:
            long[str(path.relative_to(ROOT))] = lines
    assert not long
