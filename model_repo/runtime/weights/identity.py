"""Which checkpoint a folder holds: of what shape (identity), and with what weights (content).

Both are the same wherever the folder lies and whenever it was copied there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mm2c_runtime.weights.safetensors_file import INDEX

WHOLE = 256 << 20  # bytes: smaller checkpoints are hashed whole
SAMPLES, SAMPLE = 256, 4096  # larger ones: this many places of a shard, this many bytes each
_THREADS = 16  # reads under way: samples lie apart, and a disk serves several at a time


def headers_digest(index: bytes, headers: Iterable[tuple[str, bytes]]) -> str:
    """sha256 of the index (empty where there is none) and of every shard's raw header, by file name."""
    digest = hashlib.sha256(index)
    for file, header in headers:
        digest.update(f"\0{file}\0{len(header)}\0".encode())
        digest.update(header)
    return digest.hexdigest()


def identity_of(folder: Path, digest: str) -> str:
    """sha256 over config.json, the index and every header: changes when any tensor's place or type does."""
    return hashlib.sha256((folder / "config.json").read_bytes() + digest.encode()).hexdigest()


def index_bytes(folder: Path) -> bytes:
    path = folder / INDEX
    return path.read_bytes() if path.is_file() else b""


def content_of(folder: Path, files: Iterable[str], identity: str) -> str:
    """Key of the checkpoint's data: a fine-tune of the same shapes has another.

    Up to 256 MiB every byte counts; beyond, each shard's size and 256 evenly spread samples. OSError where a file
    cannot be read.
    """
    names = sorted(files)
    sizes = [(folder / name).stat().st_size for name in names]
    whole = sum(sizes) <= WHOLE

    def part(number: int) -> bytes:
        path = folder / names[number]
        return _hashed(path) if whole else _sampled(path, sizes[number])

    digest = hashlib.sha256(identity.encode())
    with ThreadPoolExecutor(_THREADS) as threads:
        for name, size, found in zip(names, sizes, threads.map(part, range(len(names))), strict=True):
            digest.update(f"{name}:{size}".encode() + found)
    return digest.hexdigest()


def _hashed(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()


def _sampled(path: Path, size: int) -> bytes:
    digest = hashlib.sha256()
    handle = os.open(path, os.O_RDONLY)
    try:
        for index in range(SAMPLES):
            digest.update(os.pread(handle, SAMPLE, index * max(1, (size - SAMPLE) // (SAMPLES - 1))))
    finally:
        os.close(handle)
    return digest.digest()
