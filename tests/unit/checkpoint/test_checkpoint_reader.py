"""Opening a checkpoint: formats from the tensors, lazy reading, identity, recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from edit_checkpoint import edited, load
from safetensors.numpy import save_file

from mm2c.checkpoint import Checkpoint
from mm2c.errors import UserError
from mm2c_runtime.weights.evaluate import evaluate

Make = Callable[..., Path]
EXPERT = "model.layers.1.block_sparse_moe.experts.3"
Q = "model.layers.0.self_attn.q_proj.weight"


def test_read_is_the_stored_tensor(random_checkpoint: Make) -> None:
    folder = random_checkpoint()
    checkpoint = Checkpoint.open(folder)
    for name, expected in load(folder).items():
        found = checkpoint.read(name)
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()
        assert not found.flags.writeable
        assert checkpoint.read_rows(name, 0, len(expected)).tobytes() == expected.tobytes()
    assert checkpoint.read(Q).dtype == ml_dtypes.float8_e4m3fn


def test_read_rows_reads_a_part(random_checkpoint: Make) -> None:
    checkpoint = Checkpoint.open(random_checkpoint())
    whole = checkpoint.read(Q)
    assert checkpoint.read_rows(Q, 3, 9).tobytes() == whole[3:9].tobytes()
    assert checkpoint.read_rows(Q, 5, 5).shape == (0, whole.shape[1])
    with pytest.raises(KeyError, match="no_such"):
        checkpoint.read("no_such")


def test_arrays_outlive_the_checkpoint(random_checkpoint: Make) -> None:
    with Checkpoint.open(random_checkpoint()) as checkpoint:
        array = checkpoint.read(Q)
    assert array.astype(np.float32).any()


@pytest.mark.parametrize("quant", ["fp8", "bf16", "mixed"])
def test_formats_come_from_the_tensors(random_checkpoint: Make, quant: str) -> None:
    formats = Checkpoint.open(random_checkpoint(quant=quant, gate_dtype="f32")).formats
    attention = {m for m in formats.fp8 if ".self_attn." in m}
    experts = {m for m in formats.fp8 if m.endswith(".mlp.experts")}
    assert len(attention) == (8 if quant == "fp8" else 0)
    assert len(experts) == (0 if quant == "bf16" else 2)
    assert formats.dtype("model.layers.0.mlp.gate.weight") == "f32"
    assert formats.dtype("model.layers.0.mlp.e_score_correction_bias") == "f32"
    assert formats.dtype("model.norm.weight") == "bf16"


def test_dense_linear_in_an_fp8_checkpoint(random_checkpoint: Make, tmp_path: Path) -> None:
    """A linear that is bf16 although the configuration would have it FP8: the tensor decides."""

    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q] = tensors[Q].astype(ml_dtypes.bfloat16)
        del tensors[Q + "_scale_inv"]

    formats = Checkpoint.open(edited(random_checkpoint(), tmp_path / "m", edit)).formats
    assert formats.of("model.layers.0.self_attn.q_proj") == "dense"
    assert formats.of("model.layers.0.self_attn.k_proj") == "fp8"


def test_recipes_evaluate_to_the_released_layout(random_checkpoint: Make) -> None:
    folder = random_checkpoint()
    checkpoint, tensors = Checkpoint.open(folder), load(folder)
    recipes = checkpoint.recipes()
    experts = "model.layers.1.mlp.experts"
    for suffix in ("", "_scale_inv"):
        w1, w2, w3 = (tensors[f"{EXPERT}.{w}.weight{suffix}"] for w in ("w1", "w2", "w3"))
        pair = evaluate(recipes[f"{experts}.gate_up_proj{suffix}"], checkpoint)[3]
        assert pair.tobytes() == w1.tobytes() + w3.tobytes()
        assert evaluate(recipes[f"{experts}.down_proj{suffix}"], checkpoint)[3].tobytes() == w2.tobytes()
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    assert (
        evaluate(recipes["model.layers.0.mlp.gate.weight"], checkpoint).tobytes() == tensors[gate].tobytes()
    )
    assert recipes["rope.cos"].shape == (2048, 32)
    assert checkpoint.recipes(context=64)["rope.sin"].shape == (64, 32)
    assert set(tensors) == _sources(recipes.values())


def _sources(recipes: object) -> set[str]:
    from mm2c_runtime.weights.recipe_json import to_json

    found: set[str] = set()

    def walk(value: object) -> None:
        if isinstance(value, list):
            if value and value[0] == "source":
                found.add(value[1])
            for item in value:
                walk(item)

    walk([to_json(recipe) for recipe in recipes])  # type: ignore[attr-defined]
    return found


def test_identity_follows_headers_and_config(random_checkpoint: Make, tmp_path: Path) -> None:
    folder = random_checkpoint()
    same = Checkpoint.open(edited(folder, tmp_path / "a")).identity()
    assert Checkpoint.open(edited(folder, tmp_path / "b")).identity() == same
    assert Checkpoint.open(edited(folder, tmp_path / "c", rms_norm_eps=1e-5)).identity() != same
    assert Checkpoint.open(folder).identity() != same  # other shards


def test_single_file_without_index(random_checkpoint: Make, tmp_path: Path) -> None:
    folder = random_checkpoint()
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(load(folder), tmp_path / "model.safetensors")
    one, two = Checkpoint.open(tmp_path), Checkpoint.open(folder)
    assert one.formats == two.formats
    assert one.read(Q).tobytes() == two.read(Q).tobytes()


def test_tied_head_is_the_embedding(random_checkpoint: Make, tmp_path: Path) -> None:
    folder = edited(
        random_checkpoint(), tmp_path / "m", lambda t: t.pop("lm_head.weight"), tie_word_embeddings=True
    )
    checkpoint = Checkpoint.open(folder)
    head = evaluate(checkpoint.recipes()["lm_head.weight"], checkpoint)
    assert head.tobytes() == checkpoint.read("model.embed_tokens.weight").tobytes()
    again = edited(
        random_checkpoint(),
        tmp_path / "n",
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}),
        tie_word_embeddings=True,
    )
    assert any("lm_head.weight is ignored" in note for note in Checkpoint.open(again).notes)


def test_a_head_of_its_own_is_used_even_if_the_config_ties_it(
    random_checkpoint: Make, tmp_path: Path
) -> None:
    """As transformers does, which warns and leaves the two apart."""
    checkpoint = Checkpoint.open(edited(random_checkpoint(), tmp_path / "m", tie_word_embeddings=True))
    head = evaluate(checkpoint.recipes()["lm_head.weight"], checkpoint)
    assert head.tobytes() == checkpoint.read("lm_head.weight").tobytes()
    assert any("lm_head.weight differs from the embedding" in note for note in checkpoint.notes)


def test_mtp_and_inverse_frequencies_are_ignored(random_checkpoint: Make, tmp_path: Path) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        extra = np.ones(4, np.float32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = extra
        tensors["model.layers.2.mtp_block.norm.weight"] = extra
        tensors["model.mtp.0.norm.weight"] = extra

    notes = Checkpoint.open(edited(random_checkpoint(), tmp_path / "m", edit)).notes
    assert any("2 tensors of multi-token prediction" in note for note in notes)


def test_file_shortened_after_opening(random_checkpoint: Make, tmp_path: Path) -> None:
    folder = edited(random_checkpoint(), tmp_path / "m")
    checkpoint = Checkpoint.open(folder)
    info = checkpoint.tensors[Q]
    with (folder / info.file).open("r+b") as file:
        file.truncate(info.offset + 10)
    with pytest.raises(UserError, match="became shorter"):
        checkpoint.read_rows(Q, 0, 4)


def test_importing_is_light() -> None:
    heavy = "('torch', 'transformers', 'onnx', 'huggingface_hub')"
    code = f"import sys, mm2c.checkpoint; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
