"""What every bundle carries beside graphs and weights: chat files, the runtime, and the Triton models."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from mm2c.bundle.chat_files import OPTIONAL, REQUIRED, chat_template_of
from mm2c.engine.plugin_library import NAMES, PluginLibrary

if TYPE_CHECKING:
    from importlib.abc import Traversable  # importlib.resources.abc from Python 3.11 on

TRITON_MODELS = ("minimax_m2", "minimax_m2_unary", "minimax_m2_parse", "mm_gate")


def write_all(checkpoint: Path, bundle: Path) -> None:
    """Chat files, runtime and Triton models."""
    write_chat_files(checkpoint, bundle)
    write_runtime(bundle)
    write_triton_models(bundle)


def write_chat_files(checkpoint: Path, bundle: Path) -> None:
    for name in (*REQUIRED, *OPTIONAL):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, bundle / name)
    (bundle / "chat_template.jinja").write_text(chat_template_of(checkpoint), encoding="utf-8")


def write_runtime(bundle: Path) -> None:
    """``runtime/mm2c_runtime``: the serving code as it is now, so that a bundle needs no installed mm2c."""
    _copy_tree(resources.files("mm2c_runtime"), bundle / "runtime" / "mm2c_runtime", suffixes=(".py",))


def write_plugins(library: PluginLibrary, bundle: Path) -> None:
    """``plugins/``: the library and its host; ``runtime/mm2c_plugins``: the Python that reaches them."""
    (bundle / "plugins").mkdir()
    for name in NAMES:
        shutil.copyfile(library.folder / name, bundle / "plugins" / name)
    package, target = resources.files("mm2c_plugins"), bundle / "runtime" / "mm2c_plugins"
    _copy_tree(package / "host", target / "host", suffixes=(".py",))
    (target / "__init__.py").write_bytes((package / "__init__.py").read_bytes())


def write_triton_models(bundle: Path) -> None:
    """``model_repository/``: outside it nothing may lie that is no model, or Triton's poll ends the server."""
    package = resources.files("mm2c_model_repo")
    for name in TRITON_MODELS:
        _copy_tree(package / name, bundle / "model_repository" / name, suffixes=(".py", ".pbtxt"))


def _copy_tree(source: Traversable, target: Path, suffixes: tuple[str, ...]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        if item.is_dir() and item.name != "__pycache__":
            _copy_tree(item, target / item.name, suffixes)
        elif item.name.endswith(suffixes):
            (target / item.name).write_bytes(item.read_bytes())
