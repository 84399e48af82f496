"""What decides a bundle's content, as keys: the checkpoint's data, the options, the code and its libraries."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from mm2c.bundle.cache import key_of
from mm2c.version import source_digest
from mm2c_runtime.weights.identity import WHOLE

if TYPE_CHECKING:
    from mm2c.checkpoint import Checkpoint
    from mm2c.config import BuildOptions, ModelConfig, WeightFormats

LIBRARIES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def libraries() -> dict[str, str]:
    """Versions of what the build runs on; an absent one is left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def content_key(checkpoint: Checkpoint) -> str:
    """Key of the checkpoint's data: its content, and where that is sampled also the files' times, so that what was
    written to is built anew even if no sample lies there."""
    digest = hashlib.sha256(checkpoint.content().encode())
    status = [(checkpoint.folder / file).stat() for file in checkpoint.files]
    if sum(one.st_size for one in status) > WHOLE:
        digest.update(str([one.st_mtime_ns for one in status]).encode())
    return digest.hexdigest()


def chat_key(folder: Path) -> str:
    """Key of the chat files beside the weights."""
    from mm2c.bundle.chat_files import OPTIONAL, REQUIRED

    digest = hashlib.sha256()
    for name in (*REQUIRED, *OPTIONAL, "chat_template.jinja"):
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()


def graphs_key(
    config: ModelConfig,
    formats: WeightFormats,
    options: BuildOptions,
    *,
    tied: bool,
    config_only: bool,
    plugins: str = "",
) -> str:
    """Key of the graph stage: everything but the weights' values. ``tied``: the head is the embedding;
    ``plugins``: digest of the plugin library, where the bundle carries one."""
    stored = {"fp8": sorted(formats.fp8), "dtypes": formats.dtypes}
    return key_of(
        {
            "config": asdict(config),
            "formats": stored,
            "tied": tied,
            "options": asdict(options),
            "config_only": config_only,
            "plugins": plugins,
            "source": source_digest(),
            "libraries": libraries(),
        }
    )
