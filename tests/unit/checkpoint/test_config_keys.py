"""config.json: every key is compiled, irrelevant, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from m2_layout import released_config

from mm2c.checkpoint import assumed_formats, read_config
from mm2c.checkpoint import config_keys as keys
from mm2c.config import Rope
from mm2c.errors import UserError


def released(**changes: Any) -> dict[str, Any]:
    config = released_config(
        layers=2, hidden=128, heads=8, kv_heads=4, head_dim=32, rotary_dim=16, intermediate=256, experts=8,
        top_k=2, vocab=512, context=2048, rope_theta=5e6,
    )  # fmt: skip
    for key, value in changes.items():
        config[key] = value
    return config


def parse(folder: Path, config: dict[str, Any]) -> Any:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return read_config(path)


def refusal(folder: Path, config: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        parse(folder, config)
    assert str(folder) in caught.value.where
    return caught.value


def test_released_config_is_compiled(tmp_path: Path) -> None:
    parsed = parse(tmp_path, released())
    model = parsed.model
    assert (model.layers, model.hidden, model.heads, model.kv_heads, model.head_dim) == (2, 128, 8, 4, 32)
    assert (model.intermediate, model.experts, model.top_k, model.vocab, model.context) == (
        256,
        8,
        2,
        512,
        2048,
    )
    assert model.rope == Rope(5e6, 16)
    assert model.eps == 1e-6
    assert parsed.quant.modules_to_not_convert == ("gate", "e_score_correction_bias", "lm_head")
    assert not parsed.tied
    assert any("multi-token prediction (3 modules" in note for note in parsed.notes)


def test_folder_is_taken_for_its_config(tmp_path: Path) -> None:
    parse(tmp_path, released())
    assert read_config(tmp_path).model.layers == 2


def test_special_tokens_come_from_generation_config_first(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 7, "eos_token_id": [8, 9]}')
    model = parse(tmp_path, released(bos_token_id=1, eos_token_id=2)).model
    assert (model.bos, model.eos) == (7, (8, 9))
    (tmp_path / "generation_config.json").unlink()
    model = parse(tmp_path, released(bos_token_id=1, eos_token_id=2)).model
    assert (model.bos, model.eos) == (1, (2,))


def test_special_token_outside_the_vocabulary(tmp_path: Path) -> None:
    assert "eos_token_id" in refusal(tmp_path, released(eos_token_id=512)).what


def test_first_release_says_minimax(tmp_path: Path) -> None:
    assert parse(tmp_path, released(model_type="minimax")).model.layers == 2
    error = refusal(tmp_path, released(model_type="minimax", architectures=["MiniMaxForCausalLM"]))
    assert 'did you mean "minimax_m2"?' in error.remedy


@pytest.mark.parametrize(("given", "hint"), [("minimax-m2", True), ("minimax_m3", True), ("llama", False)])
def test_unknown_model_type(tmp_path: Path, given: str, hint: bool) -> None:
    error = refusal(tmp_path, released(model_type=given))
    assert f'model_type "{given}"' in error.what
    assert ('did you mean "minimax_m2"?' in error.remedy) == hint


def test_no_model_type(tmp_path: Path) -> None:
    config = released()
    del config["model_type"]
    assert "no model_type" in refusal(tmp_path, config).what


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sliding_window", 4096),
        ("use_sliding_window", True),
        ("attention_bias", True),
        ("qkv_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("qk_norm_type", "per_head"),
        ("use_qk_norm", False),
        ("scoring_func", "softmax"),
        ("use_routing_bias", False),
        ("shared_intermediate_size", 1536),
        ("n_shared_experts", 1),
        ("norm_topk_prob", False),
        ("routed_scaling_factor", 2.5),
        ("layernorm_mlp_beta", 3.5),
        ("attn_logit_softcapping", 30.0),
        ("lora_rank", 16),
        ("my_lora_targets", ["q_proj"]),
        ("vision_config", {"depth": 2}),
        ("quantum_entanglement", True),
        ("num_hidden_layers", "62"),
        ("num_hidden_layers", 2.0),
        ("hidden_size", 0),
        ("vocab_size", True),
        ("head_dim", -128),
        ("num_attention_heads", 6),
        ("num_experts_per_tok", 9),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", "1e-6"),
        ("tie_word_embeddings", "yes"),
        ("attn_type_list", [1]),
        ("attn_type_list", 1),
        ("layer_types", "full_attention"),
    ],
)
def test_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    error = refusal(tmp_path, released(**{key: value}))
    assert key in error.what
    assert repr(value)[:40] in error.what


def test_linear_attention_layer_is_named(tmp_path: Path) -> None:
    assert "attn_type_list[1] = 0" in refusal(tmp_path, released(attn_type_list=[1, 0])).what


def test_unknown_key_has_a_suggestion(tmp_path: Path) -> None:
    error = refusal(tmp_path, released(num_hiden_layers=3))
    assert "num_hiden_layers" in error.what
    assert error.remedy == 'did you mean "num_hidden_layers"?'


def test_missing_size(tmp_path: Path) -> None:
    config = released()
    del config["intermediate_size"]
    assert refusal(tmp_path, config).what == "config.json lacks intermediate_size"


def test_alias_must_agree(tmp_path: Path) -> None:
    assert parse(tmp_path, released(num_experts=8)).model.experts == 8
    assert "num_experts" in refusal(tmp_path, released(num_experts=16)).what


@pytest.mark.parametrize("key", sorted(keys.IRRELEVANT))
def test_irrelevant_keys_change_nothing(tmp_path: Path, key: str) -> None:
    expected = parse(tmp_path, released()).model
    assert parse(tmp_path, released(**{key: "anything"})).model == expected


@pytest.mark.parametrize("key", sorted(keys.FIXED))
def test_fixed_keys_take_their_compiled_values(tmp_path: Path, key: str) -> None:
    for value in keys.FIXED[key].allowed:
        assert parse(tmp_path, released(**{key: value})).model.layers == 2
    assert key in refusal(tmp_path, released(**{key: "something else"})).what


def test_no_key_is_in_two_tables() -> None:
    tables = (keys.SIZES, keys.ALIASES, keys.ROPE, keys.OTHER_COMPILED, keys.MTP, keys.IRRELEVANT, keys.FIXED)
    assert sum(len(table) for table in tables) == len(keys.KNOWN)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"quant_method": "gptq"}, "quant_method"),
        ({"quant_method": "fp_8"}, "quant_method"),
        ({"quant_method": None}, "quant_method"),
        ({"fmt": "float8_e5m2"}, "fmt"),
        ({"activation_scheme": "static"}, "activation_scheme"),
        ({"weight_block_size": [64, 128]}, "weight_block_size"),
        ({"weight_block_size": None}, "weight_block_size"),
        ({"modules_to_not_convert": "gate"}, "modules_to_not_convert"),
        ({"modules_to_not_convert": ["("]}, "modules_to_not_convert"),
        ({"weight_blocksize": [128, 128]}, "weight_blocksize"),
    ],
)
def test_refused_quantisation(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    config = released()
    config["quantization_config"] = {**config["quantization_config"], **changes}
    assert f"quantization_config.{named}" in refusal(tmp_path, config).what


def test_quantisation_must_be_an_object(tmp_path: Path) -> None:
    assert "quantization_config" in refusal(tmp_path, released(quantization_config="fp8")).what


def test_assumed_formats_follow_modules_to_not_convert(tmp_path: Path) -> None:
    config = released()
    parsed = parse(tmp_path, config)
    formats = assumed_formats(parsed.model, parsed.quant)
    assert len(formats.fp8) == 2 * 5
    config["quantization_config"]["modules_to_not_convert"] += ["model.layers.1.self_attn", "k_proj"]
    parsed = parse(tmp_path, config)
    formats = assumed_formats(parsed.model, parsed.quant)
    assert {name for name in formats.fp8 if "layers.1" in name} == {"model.layers.1.mlp.experts"}
    assert "model.layers.0.self_attn.k_proj" not in formats.fp8
    assert "model.layers.0.self_attn.q_proj" in formats.fp8
    assert assumed_formats(parsed.model, None).fp8 == frozenset()


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_broken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        read_config(tmp_path / "config.json")
