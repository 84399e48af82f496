"""Checkpoints that do not hold together are refused before any work, with the tensor's or the file's name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from edit_checkpoint import edited

from mm2c.checkpoint import Checkpoint
from mm2c.checkpoint.validate import summarise
from mm2c.errors import UserError

Make = Callable[..., Path]
LAYER = "model.layers.1"
K = f"{LAYER}.self_attn.k_proj.weight"
MOE = f"{LAYER}.block_sparse_moe"
W1, W2 = f"{MOE}.experts.3.w1.weight", f"{MOE}.experts.3.w2.weight"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"


def refusal(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        Checkpoint.open(folder).validate_values()
    assert caught.value.where
    return caught.value


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        tensors[name] = value(tensors.get(name)) if callable(value) else value

    return edit


def drop(*names: str) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        for name in names:
            del tensors[name]

    return edit


def scale_with(value: float) -> Callable[[Any], Any]:
    def edit(scale: Any) -> Any:
        changed = scale.copy()
        changed[-1, 0] = value
        return changed

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (drop(K), r"1 tensor is missing:\n\s+layer 1: self_attn\.k_proj\.weight"),
        (drop(K + "_scale_inv"), r"k_proj\.weight_scale_inv"),
        (drop(W1, W1 + "_scale_inv"), r"layer 1: experts 3 w1\.weight$"),
        (drop("model.norm.weight"), r"model\.norm\.weight"),
        (
            put(K, lambda w: w[:-1]),
            r"k_proj\.weight has shape \[511, 128\]; config\.json makes it \[512, 128\]",
        ),
        (
            put(K + "_scale_inv", lambda s: s[:-1]),
            r"k_proj\.weight_scale_inv is f32\[3, 1\];.* need f32\[4, 1\]",
        ),
        (put(K + "_scale_inv", lambda s: s.astype(np.float16)), r"k_proj\.weight_scale_inv is f16"),
        (put(K + "_scale_inv", scale_with(np.nan)), r"k_proj\.weight_scale_inv\[3, 0\] is nan"),
        (put(K + "_scale_inv", scale_with(np.inf)), r"k_proj\.weight_scale_inv\[3, 0\] is inf"),
        (put(K + "_scale_inv", scale_with(0.0)), r"k_proj\.weight_scale_inv\[3, 0\] is 0\.0"),
        (put(K + "_scale_inv", scale_with(-1.0)), r"k_proj\.weight_scale_inv\[3, 0\] is -1\.0"),
        (put(K, lambda w: w.astype(ml_dtypes.bfloat16)), r"k_proj\.weight is bf16, yet it has a scale_inv"),
        (put(K, lambda w: w.view(np.int8)), r"k_proj\.weight"),
        (put(f"{LAYER}.input_layernorm.weight", lambda w: w.astype(np.int32)), "stored as I32"),
        (
            put(f"{MOE}.gate.weight", lambda w: w.astype(ml_dtypes.float8_e4m3fn)),
            r"gate\.weight is stored as e4m3",
        ),
        (put("extra.weight", np.ones(3, np.float32)), r"1 tensor is not M2's:\n\s+extra\.weight"),
        (put("model.norm.bias", np.ones(3, np.float32)), r"not M2's"),
        (put("model.norm.weight_scale_inv", np.ones((1, 1), np.float32)), r"not M2's"),
    ],
)
def test_refused_by_name(random_checkpoint: Make, tmp_path: Path, edit: Any, says: str) -> None:
    error = refusal(edited(random_checkpoint(), tmp_path / "m", edit))
    assert re.search(says, error.what, re.MULTILINE), error.what
    assert error.remedy or "stored as" in error.what


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (f"{LAYER}.self_attn.q_proj.lora_A.weight", "adapters"),
        (f"{LAYER}.self_attn.q_proj.bias", "no bias"),
        (f"{LAYER}.self_attn.k_scale", "static"),
        (f"{LAYER}.mlp.experts.gate_up_proj", "fused experts"),
        (f"{LAYER}.self_attn.q_proj.qweight", "integer-quantised"),
        (f"{MOE}.experts.8.w1.weight", "2 layers of 8 experts"),
    ],
)
def test_strangers_are_explained(random_checkpoint: Make, tmp_path: Path, name: str, remedy: str) -> None:
    error = refusal(edited(random_checkpoint(), tmp_path / "m", put(name, np.ones(3, np.float32))))
    assert remedy in error.remedy


def test_layers_beyond_the_last_need_mtp(random_checkpoint: Make, tmp_path: Path) -> None:
    edit = put("model.layers.2.input_layernorm.weight", np.ones(128, np.float32))
    assert Checkpoint.open(edited(random_checkpoint(), tmp_path / "a", edit))
    folder = edited(random_checkpoint(), tmp_path / "b", edit, num_mtp_modules=0, use_mtp=False)
    assert "not M2's" in refusal(folder).what


def test_experts_of_a_layer_are_stored_alike(random_checkpoint: Make, tmp_path: Path) -> None:
    def one_dense(tensors: dict[str, Any]) -> None:
        tensors[W1] = tensors[W1].astype(ml_dtypes.bfloat16)
        del tensors[W1 + "_scale_inv"]

    def all_down_dense(tensors: dict[str, Any]) -> None:
        for expert in range(8):
            name = f"{MOE}.experts.{expert}.w2.weight"
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
            del tensors[name + "_scale_inv"]

    assert (
        "other experts of its layer" in refusal(edited(random_checkpoint(), tmp_path / "a", one_dense)).what
    )
    assert "FP8 and dense" in refusal(edited(random_checkpoint(), tmp_path / "b", all_down_dense)).what


def test_fp8_against_the_configuration(random_checkpoint: Make, tmp_path: Path) -> None:
    plain = edited(random_checkpoint(), tmp_path / "a", quantization_config=...)
    assert "no quantization_config" in refusal(plain).what
    quant = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["k_proj"]}
    listed = edited(random_checkpoint(), tmp_path / "b", quantization_config=quant)
    assert "modules_to_not_convert names it" in refusal(listed).what


def test_missing_shard(random_checkpoint: Make, tmp_path: Path) -> None:
    folder = edited(random_checkpoint(), tmp_path / "m")
    (folder / SHARD).unlink()
    assert refusal(folder).what == f"shard {SHARD} is missing"


def test_truncated_shard(random_checkpoint: Make, tmp_path: Path) -> None:
    folder = edited(random_checkpoint(), tmp_path / "m")
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[:-100])
    says = f"shard {SHARD} is truncated: {len(data) - 100} bytes, its header needs {len(data)}"
    assert says in refusal(folder).what


def test_no_weights(random_checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((random_checkpoint() / "config.json").read_text())
    assert "no safetensors weights" in refusal(tmp_path).what


def test_adapter_folder(random_checkpoint: Make, tmp_path: Path) -> None:
    folder = edited(random_checkpoint(), tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    assert "LoRA" in refusal(folder).what


def change_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i: i["weight_map"].update(absent=SHARD), "puts absent into"),
        (lambda i: i["weight_map"].update({K: "model-00009-of-00002.safetensors"}), "model-00009-of-00002"),
        (lambda i: i["weight_map"].pop(K), "does not name"),
        (lambda i: i["weight_map"].update({K: "../x.safetensors"}), "no shard of this folder"),
        (lambda i: i["weight_map"].update({K: 3}), "no shard of this folder"),
        (lambda i: i.update(weight_map={}), "no weight_map"),
        (lambda i: i.pop("weight_map"), "no weight_map"),
    ],
)
def test_index_and_shards_must_agree(random_checkpoint: Make, tmp_path: Path, change: Any, says: str) -> None:
    folder = change_index(edited(random_checkpoint(), tmp_path / "m"), change)
    assert says in refusal(folder).what


def test_tensor_in_the_other_shard(random_checkpoint: Make, tmp_path: Path) -> None:
    folder = edited(random_checkpoint(), tmp_path / "m")

    def swap(index: dict[str, Any]) -> None:
        shards = sorted(set(index["weight_map"].values()))
        index["weight_map"][K] = shards[1 - shards.index(index["weight_map"][K])]

    assert "does not hold it (it is in" in refusal(change_index(folder, swap)).what


def test_tensor_in_two_shards(random_checkpoint: Make, tmp_path: Path) -> None:
    folder = edited(random_checkpoint(), tmp_path / "m")
    (folder / "copy.safetensors").write_bytes((folder / SHARD).read_bytes())
    assert any("copy.safetensors" in note for note in Checkpoint.open(folder).notes)
    change_index(folder, lambda i: i["weight_map"].update({K: "copy.safetensors"}))
    assert "is in both copy.safetensors and" in refusal(folder).what


def test_missing_tensors_are_summarised() -> None:
    names = [
        f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"
        for layer in range(3, 8)
        for expert in range(256)
    ]
    assert summarise(names) == ["layers 3-7: experts 0-255 w1.weight"]
    names += ["model.layers.4.self_attn.q_norm.weight", "lm_head.weight"]
    assert summarise(names) == [
        "lm_head.weight",
        "layers 3, 5-7: experts 0-255 w1.weight",
        "layer 4: experts 0-255 w1.weight; self_attn.q_norm.weight",
    ]
    assert len(summarise([f"t{i}" for i in range(100)])) == 9
