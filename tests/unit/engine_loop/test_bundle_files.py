"""What ``Bundle.load`` refuses before anything is loaded, and what importing the package costs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mm2c_runtime.bundle import Bundle
from mm2c_runtime.checksums import check_contents, check_sizes, remember_contents
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.load import load_executor
from mm2c_runtime.manifest import FORMAT, FileEntry
from mm2c_runtime.manifest_file import read_manifest

MANIFEST: dict[str, Any] = {
    "format": FORMAT,
    "mm2c_version": "0",
    "build_key": "0",
    "engine": "onnxruntime",
    "model": {
        "name": "toy", "layers": 1, "hidden": 8, "heads": 1, "kv_heads": 1, "head_dim": 8, "rotary_dim": 4,
        "experts": 2, "top_k": 1, "intermediate": 8, "vocab": 16, "context": 32, "bos": None, "eos": [1],
    },
    "mapping": {"tp": 1, "ep": 1},
    "limits": {"context": 32, "max_rows": 2, "prefill_chunk": 8},
    "logits": "last",
    "checkpoint": {"source": "x", "revision": None, "identity": "0", "format": "fp8"},
    "lowerings": {"fast": {"ranks": [], "in_place": True, "padded": False}},
    "libraries": {},
    "files": {},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MM2C_CACHE", raising=False)
    made = tmp_path / "bundle"
    (made / "rank0").mkdir(parents=True)
    files = {}
    for name in ("tokenizer.json", "rank0/weights.safetensors"):
        content = name.encode() * 1000
        (made / name).write_bytes(content)
        files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (made / "manifest.json").write_text(json.dumps({**MANIFEST, "files": files}))
    return made


def entries(folder: Path) -> dict[str, FileEntry]:
    return read_manifest(folder).files


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads is 0, not a whole number of at least 1"),
        ({"threads": True}, "threads is True"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"verify_checksums": True}, "verify_checksums is True, not one of none, sizes, full"),
        ({"verify_checksums": "some"}, "verify_checksums is 'some'"),
    ],
)
def test_arguments_of_load(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder, **arguments)
    assert message in caught.value.what
    assert caught.value.remedy


def test_untouched(folder: Path) -> None:
    check_contents(folder, entries(folder))
    check_contents(folder, entries(folder))


def test_an_altered_byte_is_found_also_after_the_hashes_were_remembered(folder: Path) -> None:
    check_contents(folder, entries(folder))
    path = folder / "rank0/weights.safetensors"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[77] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match=r"rank0/weights.safetensors was altered after the build") as caught:
        Bundle.load(folder)
    assert caught.value.remedy
    check_sizes(folder, entries(folder))


def test_missing_and_cut_files(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"tokenizer.json has 5 bytes, the manifest says 14000"):
        Bundle.load(folder, verify_checksums="sizes")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer.json cannot be read: No such file"):
        Bundle.load(folder)


def test_hashes_are_remembered_and_a_damaged_memory_is_no_harm(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_contents(folder, entries(folder))
    hashed: list[Path] = []

    def record(path: Path, offset: int, size: int) -> bytes:
        hashed.append(path)
        return b""

    monkeypatch.setattr("mm2c_runtime.checksums._digest", record)
    check_contents(folder, entries(folder))
    assert not hashed
    (memory,) = (tmp_path / "cache/mm2c/checksums").iterdir()
    memory.write_text('{"tokenizer.json": [1]}')
    with pytest.raises(BundleError):
        check_contents(folder, entries(folder))
    assert len(hashed) == 2


def test_the_cache_folder_of_mm2c_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM2C_CACHE", str(tmp_path / "own"))
    check_contents(folder, entries(folder))
    assert len(list((tmp_path / "own/checksums").iterdir())) == 1
    assert not (tmp_path / "cache").exists()


def test_no_place_to_remember_hashes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_contents(folder, entries(folder), cache=tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "the bundle has format 99"),
        ({"checkpoint": None}, "built from config.json alone"),
        ({"engine": "tensorrt"}, "for the engine tensorrt and names no programs"),
        ({"engine": "cuda"}, "for the engine cuda and names no programs"),
        ({"lowerings": {}}, "has no lowering 'fast'"),
        ({"limits": {"context": "many", "max_rows": 1, "prefill_chunk": 1}}, "limits.context: "),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    ],
)
def test_manifests_that_cannot_be_served(folder: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(folder)
    assert caught.value.remedy


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle here: manifest.json cannot be read"):
        Bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="not valid JSON"):
        Bundle.load(tmp_path)


def test_without_onnxruntime_the_remedy_is_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleError, match="ONNX Runtime, which cannot be imported") as caught:
        load(folder)
    assert "pip install 'mm2c[cpu]'" in caught.value.remedy
    assert "pip install '.[cpu]'" in caught.value.remedy


def test_without_torch_the_remedy_is_the_extra_of_the_cuda_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(folder, engine="cuda")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BundleError, match="torch cannot be imported") as caught:
        load(folder)
    assert "pip install 'mm2c[cuda]'" in caught.value.remedy


def load(folder: Path) -> None:
    load_executor(folder, read_manifest(folder), lowering="fast", threads=None, kv_tokens=None)


def test_imports_stay_light() -> None:
    code = """
import sys, mm2c_runtime, mm2c_runtime.manifest, mm2c_runtime.server.client, mm2c_runtime.server.launcher
heavy = {"onnxruntime", "torch", "transformers", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
from mm2c_runtime import Bundle
heavy = {"onnxruntime", "torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_who_wrote_a_bundle_spares_the_first_start_the_hashing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_contents(folder, entries(folder))
    hashed: list[Path] = []
    monkeypatch.setattr("mm2c_runtime.checksums._digest", lambda path, *_: hashed.append(path) or b"")
    check_contents(folder, entries(folder))
    assert hashed == []
    (folder / "tokenizer.json").write_bytes(b"tokenizer.jsoN" * 1000)
    with pytest.raises(BundleError, match=r"tokenizer\.json was altered"):
        check_contents(folder, entries(folder))
