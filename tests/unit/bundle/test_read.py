from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm2c.bundle.checksums import entries
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import CheckpointInfo, Limits, Manifest, MappingInfo, ModelInfo
from mm2c_runtime.manifest_file import read_bundle


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    (tmp_path / "tokenizer.json").write_text("{}")
    model = ModelInfo(
        name="minimax_m2", layers=1, hidden=8, heads=2, kv_heads=1, head_dim=4, rotary_dim=2, experts=2, top_k=1,
        intermediate=8, vocab=16, context=32, bos=None, eos=[1],
    )  # fmt: skip
    manifest = Manifest(
        mm2c_version="0",
        build_key="0",
        engine="onnxruntime",
        model=model,
        mapping=MappingInfo(tp=1, ep=1),
        limits=Limits(context=32, max_rows=2, prefill_chunk=8),
        logits="last",
        checkpoint=CheckpointInfo(source="x", revision=None, identity="0", format="fp8"),
        lowerings={},
        libraries={},
        files=entries(tmp_path, {}),
    )
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    return tmp_path


def test_a_whole_bundle_reads(bundle: Path) -> None:
    assert read_bundle(bundle).model.layers == 1


def test_a_changed_byte_is_found_by_its_checksum(bundle: Path) -> None:
    (bundle / "tokenizer.json").write_text("{ ")
    with pytest.raises(BundleError, match="sha256 is not") as caught:
        read_bundle(bundle)
    assert "tokenizer.json" in str(caught.value)
    assert "--force" in str(caught.value)


def test_a_changed_size_is_found_without_hashing(bundle: Path) -> None:
    (bundle / "tokenizer.json").write_text("{    }")
    with pytest.raises(BundleError, match="has 6 bytes, the manifest says 2"):
        read_bundle(bundle, checksums=False)


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        read_bundle(bundle)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 2, "surprise": 2}'])
def test_a_broken_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        read_bundle(bundle)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        read_bundle(tmp_path)


def test_the_manifest_round_trips(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    assert json.loads(Manifest.model_validate_json(text).model_dump_json()) == json.loads(text)
