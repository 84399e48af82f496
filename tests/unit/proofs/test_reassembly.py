"""Checkpoint tensors from the ranks' files: complete where nothing is wrong, and any flipped byte is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hand_graph import hand_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proof_cases import LOWER
from safetensors import safe_open

from mm2c.checkpoint import Checkpoint
from mm2c.config import Mapping
from mm2c.passes.shard import shard
from mm2c.proofs import ProofError, reassemble
from mm2c.proofs.reassemble import verify_shards
from mm2c.weights.layout import WeightJob
from mm2c.weights.writer import write_all
from mm2c_runtime.weights.recipe import Recipe
from mm2c_runtime.weights.recipe_file import write_recipes

Make = Callable[..., Path]
FILES = {"portable": "weights.safetensors", "fast": "weights.ort.safetensors", "cuda": "weights.safetensors"}
SIZES = {
    "layers": 1,
    "hidden": 128,
    "heads": 4,
    "kv_heads": 2,
    "intermediate": 768,
    "experts": 4,
    "vocab": 300,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from random_checkpoint import write_random_checkpoint

    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), **SIZES)


def written(
    folder: Path, checkpoint: Checkpoint, mapping: Mapping, *lowerings: str
) -> dict[str, dict[str, Recipe]]:
    """A bundle's rank folders; the recipes by file."""
    config = replace(checkpoint.config, context=64)
    whole = hand_graph(config, checkpoint.formats)
    files = {}
    for rank in range(mapping.ranks):
        own = shard(whole, config, mapping.at(rank))
        (folder / f"rank{rank}").mkdir(parents=True)
        for lowering in lowerings:
            path = f"rank{rank}/{FILES[lowering]}"
            files[path] = LOWER[lowering](own).recipes
            write_recipes(folder / path, files[path])
    write_all([WeightJob(folder / path, recipes) for path, recipes in files.items()], checkpoint)
    return files


@pytest.mark.parametrize("mapping", [Mapping(), Mapping(4), Mapping(2, 4, 2), Mapping(4, 2)], ids=str)
@pytest.mark.parametrize("lowerings", [("portable", "fast"), ("cuda",)])
def test_shards_are_the_checkpoint(
    checkpoint: Path,
    tmp_path: Path,
    mapping: Mapping,
    lowerings: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reassemble, "BAND", 7000)  # several bands a tensor
    with Checkpoint.open(checkpoint) as opened:
        files = written(tmp_path, opened, mapping, *lowerings)
        report = verify_shards(tmp_path, opened)
        again = verify_shards(tmp_path, opened, recipes=files)
        report.require()
        assert report == again
        moved = {
            key for key in opened.tensors if lowerings != ("cuda",) or "_proj" in key or ".experts." in key
        }
        assert report.reassembled >= len(moved)
        assert len(report.sha256) == 64
        assert report.bytes > sum(info.nbytes for key, info in opened.tensors.items() if key in moved)
        assert report.as_json()["mismatches"] == []


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    with Checkpoint.open(checkpoint) as opened:
        written(folder, opened, Mapping(4), "portable", "fast")
    return folder


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rank=st.integers(0, 3),
    kind=st.sampled_from(["portable", "fast"]),
    where=st.integers(0, 10**9),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_anywhere_is_found(
    checkpoint: Path, bundle: Path, rank: int, kind: str, where: int, bit: int
) -> None:
    path = bundle / f"rank{rank}" / FILES[kind]
    where %= path.stat().st_size
    with path.open("r+b") as file:
        file.seek(where)
        before = file.read(1)[0]
        file.seek(where)
        file.write(bytes([before ^ (1 << bit)]))
    try:
        with Checkpoint.open(checkpoint) as opened:
            found = verify_shards(bundle, opened).mismatches
    finally:
        with path.open("r+b") as file:
            file.seek(where)
            file.write(bytes([before]))
    assert {m.file for m in found} == {f"rank{rank}/{FILES[kind]}"}
    assert {m.rank for m in found} == {rank}


def test_a_mismatch_names_tensor_key_and_row(checkpoint: Path, bundle: Path) -> None:
    path = bundle / "rank2" / FILES["portable"]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    raw = path.read_bytes()
    with safe_open(path, "np") as file:
        assert file.get_slice(name).get_shape() == [4, 2 * 192, 128]
    header = int.from_bytes(raw[:8], "little")
    begin, _ = json.loads(raw[8 : 8 + header])[name]["data_offsets"]
    place = 8 + header + begin + ((3 * 384) + 192 + 5) * 128 + 1  # expert 3, row 5 of up
    path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
    try:
        with Checkpoint.open(checkpoint) as opened:
            report = verify_shards(bundle, opened)
    finally:
        path.write_bytes(raw)
    (mismatch,) = report.mismatches
    assert mismatch.tensor == name
    assert mismatch.key == "model.layers.0.block_sparse_moe.experts.3.w3.weight"
    assert mismatch.what == f"1 entries, from row {2 * 192 + 5} on, differ"
    with pytest.raises(
        ProofError, match=r"gate_up_proj, of model.layers.0.block_sparse_moe.experts.3.w3.weight"
    ):
        report.require()


def test_a_bundle_without_copies_has_nothing_to_compare(
    checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "rank0").mkdir()
    recipes = bundle / "rank0" / "weights.recipes.json"
    (tmp_path / "rank0" / recipes.name).write_bytes(recipes.read_bytes())
    with Checkpoint.open(checkpoint) as opened:
        report = verify_shards(tmp_path, opened)
    assert (report.reassembled, report.bytes, report.mismatches) == (0, 0, [])
