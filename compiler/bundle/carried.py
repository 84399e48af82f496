"""What every bundle carries beside graphs and weights: chat files, the runtime, and the Triton models."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from mm2c.errors import UserError

if TYPE_CHECKING:
    from importlib.abc import Traversable  # importlib.resources.abc from Python 3.11 on

REQUIRED = ("config.json", "tokenizer.json")
OPTIONAL = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
TRITON_MODELS = ("minimax_m2", "minimax_m2_unary", "minimax_m2_parse", "mm_gate")


def chat_template_of(checkpoint: Path) -> str:
    """The checkpoint's own template: ``chat_template.jinja``, else the field of tokenizer_config.json."""
    own = checkpoint / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    config = checkpoint / "tokenizer_config.json"
    if config.is_file():
        template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(template, str):
            return template
    raise UserError(
        "the checkpoint has no chat template",
        where=str(checkpoint),
        remedy="put the release's chat_template.jinja into the folder",
    )


def check_chat_files(checkpoint: Path) -> None:
    """Refuse a checkpoint that cannot be served, before any work."""
    for name in REQUIRED:
        if not (checkpoint / name).is_file():
            raise UserError(
                f"the checkpoint has no {name}",
                where=str(checkpoint),
                remedy=f"copy {name} of the release into the folder",
            )
    chat_template_of(checkpoint)


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
