"""config.json to ``ModelConfig``: every key is compiled, known to be irrelevant, or refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c.checkpoint import config_keys as keys
from mm2c.checkpoint.config_quant import QuantConfig, parse_quant
from mm2c.checkpoint.config_rope import parse_rope
from mm2c.checkpoint.refuse import did_you_mean, refuse
from mm2c.config import ModelConfig
from mm2c.errors import UserError

MODEL_TYPE = "minimax_m2"


@dataclass(frozen=True)
class ParsedConfig:
    """``notes``: one sentence for each thing that was read and left out. ``tied``: the head is the
    embedding."""

    model: ModelConfig
    quant: QuantConfig | None
    notes: tuple[str, ...]
    raw: dict[str, Any]
    tied: bool = False


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. UserError where the file is missing, unreadable or something else."""
    again = f"copy {path.name} of the release into the folder again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.name} is missing", where=str(path.parent), remedy=again) from error
    except OSError as error:
        raise UserError(
            f"cannot read {path.name}: {error.strerror}", where=str(path), remedy=again
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is not valid JSON: {error}", where=str(path), remedy=again) from error
    if not isinstance(value, dict):
        raise UserError(f"{path.name} holds no JSON object", where=str(path), remedy=again)
    return value


def read_config(path: Path) -> ParsedConfig:
    """Parse config.json (or the folder that holds it); ``generation_config.json`` beside it gives bos and
    eos.

    Raises UserError with the key, its value, why it is refused, and the remedy.
    """
    path = path / "config.json" if path.is_dir() else path
    raw = read_json(path)
    _check_model_type(raw, path)
    notes: list[str] = []
    _check_keys(raw, path)
    sizes = {field: _size(raw, key, path) for key, field in keys.SIZES.items()}
    eps = raw.get("rms_norm_eps", 1e-6)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
        raise refuse(path, "rms_norm_eps", eps, "expected a small number above 0")
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise refuse(path, "tie_word_embeddings", tied, "expected true or false")
    bos, eos = _special_tokens(raw, path, sizes["vocab"])
    rope = parse_rope(raw, path, sizes["head_dim"], sizes["context"])
    values: dict[str, Any] = {**sizes, "eps": float(eps), "rope": rope, "bos": bos, "eos": eos}
    model = ModelConfig(**values)
    _check_sizes(model, path)
    _check_attention_types(raw, model, path)
    if raw.get("num_mtp_modules") or raw.get("use_mtp"):
        count = raw.get("num_mtp_modules", "some")
        notes.append(f"multi-token prediction ({count} modules in {path.name}) is not compiled and ignored")
    if tied:
        notes.append("tie_word_embeddings: the head is the embedding, unless another head is stored")
    return ParsedConfig(model, parse_quant(raw.get("quantization_config"), path), tuple(notes), raw, tied)


def _check_model_type(raw: dict[str, Any], path: Path) -> None:
    kind = raw.get("model_type")
    # The first M2 release said "minimax" with M2's class: the class decides then.
    if kind == MODEL_TYPE or (kind == "minimax" and raw.get("architectures") == ["MiniMaxM2ForCausalLM"]):
        return
    hint = did_you_mean(kind, (MODEL_TYPE,)) if isinstance(kind, str) else ""
    remedy = f"{hint} mm2c compiles the MiniMax-M2 family (model_type {MODEL_TYPE})".strip()
    if kind is None:
        raise UserError(f"{path.name} has no model_type", where=str(path), remedy=remedy)
    raise UserError(f'model_type "{kind}" is not compiled', where=str(path), remedy=remedy)


def _check_keys(raw: dict[str, Any], path: Path) -> None:
    for key, value in raw.items():
        if key in keys.FIXED:
            fixed = keys.FIXED[key]
            if not any(value == ok and type(value) is type(ok) for ok in fixed.allowed):
                wanted = " or ".join(json.dumps(ok) for ok in fixed.allowed)
                remedy = f"mm2c compiles {key} = {wanted}; it cannot serve this model"
                raise refuse(path, key, value, fixed.why, remedy)
        elif key not in keys.KNOWN:
            if "lora" in key.lower():
                raise refuse(
                    path, key, value, "adapters are not compiled", "merge the adapter into the weights first"
                )
            hint = did_you_mean(key, keys.KNOWN)
            remedy = (
                hint or "remove the key if it does not change the model; otherwise mm2c cannot compile it"
            )
            raise refuse(
                path, key, value, "unknown key; compiling as if it were not there could be wrong", remedy
            )


def _size(raw: dict[str, Any], key: str, path: Path) -> int:
    for alias, target in keys.ALIASES.items():
        if target != key or alias not in raw:
            continue
        if key in raw and raw[key] != raw[alias]:
            raise refuse(path, alias, raw[alias], f"{key} says {raw[key]!r}", "keep the one that is meant")
        raw = {**raw, key: raw[alias]}
    if key not in raw:
        raise UserError(
            f"{path.name} lacks {key}", where=str(path), remedy=f"add {key}, a whole number above 0"
        )
    value = raw[key]
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise refuse(path, key, value, "expected a whole number above 0")
    return value


def _check_sizes(model: ModelConfig, path: Path) -> None:
    if model.heads % model.kv_heads:
        why = f"not a multiple of num_key_value_heads {model.kv_heads}"
        raise refuse(path, "num_attention_heads", model.heads, why)
    if model.top_k > model.experts:
        raise refuse(
            path, "num_experts_per_tok", model.top_k, f"there are {model.experts} experts to choose from"
        )


def _check_attention_types(raw: dict[str, Any], model: ModelConfig, path: Path) -> None:
    for key, softmax in (("attn_type_list", 1), ("layer_types", "full_attention")):
        kinds = raw.get(key)
        if kinds is None:
            continue
        if not isinstance(kinds, list):
            raise refuse(path, key, kinds, "expected a list with one entry per layer")
        for layer, kind in enumerate(kinds):
            if kind != softmax or isinstance(kind, bool):
                remedy = "linear and sliding-window attention are not compiled"
                raise refuse(
                    path, f"{key}[{layer}]", kind, f"only full attention ({softmax}) is compiled", remedy
                )
        if len(kinds) != model.layers:
            raise refuse(path, key, kinds, f"{len(kinds)} entries for {model.layers} layers")


def _special_tokens(raw: dict[str, Any], path: Path, vocab: int) -> tuple[int | None, tuple[int, ...]]:
    """bos and eos; those of generation_config.json come first, since generation stops by them."""
    beside = path.parent / "generation_config.json"
    generation = read_json(beside) if beside.is_file() else {}

    def ids(key: str) -> tuple[int, ...]:
        origin, values = (beside, generation) if generation.get(key) is not None else (path, raw)
        value = values.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        for item in listed:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab:
                raise refuse(origin, key, value, f"expected token ids below vocab_size {vocab}")
        return tuple(listed)

    bos = ids("bos_token_id")
    return (bos[0] if bos else None), ids("eos_token_id")
