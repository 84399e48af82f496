"""The checkpoint of a bundle without weights files: found, recognised, refused where it is another, and read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mm2c.bundle.keys import content_key
from mm2c.checkpoint import Checkpoint
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import CheckpointInfo
from mm2c_runtime.weights import identity
from mm2c_runtime.weights.checkpoint import VARIABLE, StoredCheckpoint, checkpoint_folder
from mm2c_runtime.weights.recipe import Slice, Source, Stack
from mm2c_runtime.weights.safetensors_file import INDEX

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def folder(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    copy = tmp_path / "checkpoint"
    shutil.copytree(random_checkpoint(layers=1, experts=2, seed=51), copy)
    return copy


@pytest.fixture
def info(folder: Path) -> CheckpointInfo:
    with Checkpoint.open(folder) as checkpoint:
        return CheckpointInfo(
            source=str(folder),
            revision=None,
            identity=checkpoint.identity(),
            format="fp8",
            content=checkpoint.content(),
            folder=str(folder),
        )


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_every_tensor_is_the_compilers(folder: Path, info: CheckpointInfo) -> None:
    with Checkpoint.open(folder) as ours, StoredCheckpoint.open(folder, info) as stored:
        assert stored.tensors.keys() == ours.tensors.keys()
        for name, tensor in ours.tensors.items():
            assert stored.tensors[name].dtype == tensor.dtype
            rows = stored.read_rows(name, 0, tensor.shape[0])
            assert rows.tobytes() == ours.read(name).tobytes()
            middle = tensor.shape[0] // 2
            assert stored.read_rows(name, middle, tensor.shape[0]).tobytes() == rows[middle:].tobytes()
        stored.check_unchanged()


def test_a_single_file_without_index(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "one"
    shutil.copytree(random_checkpoint(layers=1, experts=2, shards=1, seed=51), folder)
    (folder / INDEX).unlink()
    next(folder.glob("model-*.safetensors")).rename(folder / "model.safetensors")
    with Checkpoint.open(folder) as checkpoint:
        info = CheckpointInfo(
            source="",
            revision=None,
            identity=checkpoint.identity(),
            format="fp8",
            content=checkpoint.content(),
        )
    StoredCheckpoint.open(folder, info).close()


@pytest.mark.parametrize("sampled", [False, True])
def test_a_copy_elsewhere_at_another_time_is_the_same(
    folder: Path, tmp_path: Path, sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "WHOLE", 0 if sampled else identity.WHOLE)
    with Checkpoint.open(folder) as checkpoint:
        info = CheckpointInfo(
            source="",
            revision=None,
            identity=checkpoint.identity(),
            format="fp8",
            content=checkpoint.content(),
        )
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved, copy_function=shutil.copyfile)
    StoredCheckpoint.open(moved, info).close()


@pytest.mark.parametrize("sampled", [False, True])
def test_a_flipped_byte_is_found(folder: Path, sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small checkpoints are hashed whole; samples of this one, 4 KiB each and 256 a shard, also cover all of it."""
    monkeypatch.setattr(identity, "WHOLE", 0 if sampled else identity.WHOLE)
    with Checkpoint.open(folder) as checkpoint:
        info = CheckpointInfo(
            source="here",
            revision=None,
            identity=checkpoint.identity(),
            format="fp8",
            content=checkpoint.content(),
        )
        place = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"]
    flip(folder / place.file, place.offset + place.nbytes // 2)
    with pytest.raises(BundleError, match="weights are not those") as caught:
        StoredCheckpoint.open(folder, info)
    assert str(folder) in caught.value.where
    assert "here" in caught.value.where
    assert "build the bundle again" in caught.value.remedy


def test_another_config_or_header_is_refused(folder: Path, info: CheckpointInfo) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    with pytest.raises(BundleError, match="another checkpoint"):
        StoredCheckpoint.open(folder, info)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    StoredCheckpoint.open(folder, info).close()
    raw = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(raw.replace(b'"F8_E4M3"', b'"F8_E5M2"', 1))
    with pytest.raises(BundleError, match="another checkpoint"):
        StoredCheckpoint.open(folder, info)


def test_another_checkpoint_is_refused(
    random_checkpoint: Callable[..., Path], folder: Path, info: CheckpointInfo
) -> None:
    with pytest.raises(BundleError, match="another checkpoint"):
        StoredCheckpoint.open(random_checkpoint(layers=2, experts=2, seed=51), info)
    with pytest.raises(BundleError, match="weights are not those"):  # same shapes: a fine-tune
        StoredCheckpoint.open(random_checkpoint(layers=1, experts=2, seed=52), info)


@pytest.mark.parametrize("damage", ["shard", "config.json", "index", "cut", "empty"])
def test_what_cannot_be_read_is_refused(folder: Path, info: CheckpointInfo, damage: str) -> None:
    if damage in ("shard", "config.json"):
        (folder / (SHARD if damage == "shard" else damage)).unlink()
    elif damage == "index":
        (folder / INDEX).write_text("{")
    else:
        (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[: 9 if damage == "cut" else 0])
    with pytest.raises(BundleError) as caught:
        StoredCheckpoint.open(folder, info)
    assert caught.value.remedy


def test_where_it_is_looked_for(folder: Path, info: CheckpointInfo, tmp_path: Path) -> None:
    assert checkpoint_folder(info, environment={}) == folder
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    by_variable = {VARIABLE: str(tmp_path / "a")}
    assert checkpoint_folder(info, environment=by_variable) == tmp_path / "a"
    assert checkpoint_folder(info, tmp_path / "b", by_variable) == tmp_path / "b"
    gone = info.model_copy(update={"folder": str(tmp_path / "gone")})
    with pytest.raises(BundleError, match="not there") as caught:
        checkpoint_folder(gone, environment={})
    assert VARIABLE in caught.value.remedy
    assert caught.value.where == str(tmp_path / "gone")


def test_sources_are_compared_with_the_headers(folder: Path, info: CheckpointInfo) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    with StoredCheckpoint.open(folder, info) as stored:
        shape = stored.tensors[name].shape
        good = Source(name, "e4m3", shape)
        stored.check_sources([Stack((Slice(good, 0, 0, 2),))])
        for wrong in (Source(name, "bf16", shape), Source(name, "e4m3", (1, 2)), Source("x", "e4m3", shape)):
            with pytest.raises(BundleError, match="the bundle reads"):
                stored.check_sources([good, Stack((Slice(wrong, 0, 0, 1),))])


def test_a_change_while_it_is_read_is_told(folder: Path, info: CheckpointInfo) -> None:
    name = "lm_head.weight"
    with StoredCheckpoint.open(folder, info) as stored:
        file = folder / stored.tensors[name].file
        stored.read_rows(name, 0, 1)
        data = file.read_bytes()
        with file.open("r+b") as opened:
            opened.truncate(stored.tensors[name].offset)
        with pytest.raises(BundleError, match="became shorter"):
            stored.read_rows(name, 0, 8)
        file.write_bytes(data)
        with pytest.raises(BundleError, match="changed while it was read"):
            stored.check_unchanged()
        file.unlink()
        with pytest.raises(BundleError, match="changed while it was read"):
            stored.check_unchanged()


@pytest.mark.parametrize(
    ("name", "code"),
    [("model.layers.0.self_attn.q_proj.weight", b"\x7f"), ("model.norm.weight", b"\x80\x7f")],
)
def test_a_weight_that_is_no_number_is_named(
    folder: Path, info: CheckpointInfo, name: str, code: bytes
) -> None:
    """The build reads no weights where it copies none, so that a start finds them."""
    with Checkpoint.open(folder) as checkpoint:
        place = checkpoint.tensors[name]
    with (folder / place.file).open("r+b") as file:
        file.seek(place.offset + place.nbytes - len(code))
        file.write(code)
    bare = info.model_copy(update={"content": ""})
    last = ", ".join(str(size - 1) for size in place.shape)
    with (
        StoredCheckpoint.open(folder, bare) as stored,
        pytest.raises(BundleError, match=rf"{name}\[{last}\] is (nan|inf)"),
    ):
        stored.read_rows(name, place.shape[0] - 1, place.shape[0])


def test_the_cache_key_tells_a_rewritten_large_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples may miss what was written; the time does not."""
    from mm2c.bundle import keys

    monkeypatch.setattr(identity, "WHOLE", 0)
    monkeypatch.setattr(keys, "WHOLE", 0)

    def both() -> tuple[str, str]:
        with Checkpoint.open(folder) as checkpoint:
            return content_key(checkpoint), checkpoint.content()

    before = both()
    (folder / SHARD).touch()
    after = both()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_read_into_fills_what_it_is_given(folder: Path, info: CheckpointInfo) -> None:
    name = "model.embed_tokens.weight"
    with StoredCheckpoint.open(folder, info) as stored:
        rows = stored.read_rows(name, 3, 9)
        into = np.empty((6, rows.shape[1]), rows.dtype)
        stored.read_into(name, 3, into)
        assert into.tobytes() == rows.tobytes()
