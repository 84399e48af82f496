"""What decides a bundle's content, as keys: the checkpoint's data, the options, the code and its libraries."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm2c.bundle.cache import key_of
from mm2c.version import source_digest

if TYPE_CHECKING:
    from mm2c.checkpoint import Checkpoint
    from mm2c.config import BuildOptions, ModelConfig, WeightFormats

LIBRARIES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
WHOLE = 256 << 20  # bytes: smaller checkpoints are hashed whole
SAMPLES, SAMPLE = 256, 4096  # larger ones: this many places of a shard, this many bytes each


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
    """Key of the checkpoint's data: a fine-tune of the same shapes has another.

    Up to 256 MiB every byte counts; beyond, each shard's size, modification time and 256 evenly spread samples.
    """
    digest = hashlib.sha256(checkpoint.identity().encode())
    files = sorted({info.file for info in checkpoint.tensors.values()})
    sizes = {file: (checkpoint.folder / file).stat().st_size for file in files}
    for file, size in sizes.items():
        digest.update(f"{file}:{size}".encode())
        if sum(sizes.values()) <= WHOLE:
            digest.update((checkpoint.folder / file).read_bytes())
        else:
            _sample(checkpoint.folder / file, size, digest)
    return digest.hexdigest()


def _sample(path: Path, size: int, digest: Any) -> None:
    digest.update(str(path.stat().st_mtime_ns).encode())
    handle = os.open(path, os.O_RDONLY)
    try:
        for index in range(SAMPLES):
            digest.update(os.pread(handle, SAMPLE, index * max(1, (size - SAMPLE) // (SAMPLES - 1))))
    finally:
        os.close(handle)


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
