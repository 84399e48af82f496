"""The rotary embedding of config.json, in the released form and in that of transformers 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm2c.checkpoint.refuse import did_you_mean, refuse
from mm2c.config import Rope
from mm2c.errors import UserError

DEFAULT_THETA = 5_000_000.0  # of transformers' MiniMaxM2Config
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_REQUIRED: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "yarn": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
}
_OPTIONAL: dict[str, set[str]] = {
    "default": set(),
    "linear": set(),
    "yarn": {
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
    "llama3": {"original_max_position_embeddings"},
}
_REFUSED = {
    "dynamic": "its frequencies change with the length of the running sequence",
    "longrope": "its frequencies change once a sequence is longer than the original context",
    "proportional": "M2 rotates the front of a head, this the whole head",
}


def parse_rope(raw: dict[str, Any], path: Path, head_dim: int, context: int) -> Rope:
    """Theta, rotary_dim and scaling. Raises UserError for what contradicts itself or cannot be compiled."""
    scaling = _scaling_dict(raw, path)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in _REFUSED:
        remedy = "set rope_scaling to null, or to yarn or linear"
        why = f"{_REFUSED[kind]}, and cos and sin are compiled as one table"
        raise refuse(path, "rope_type", kind, why, remedy)
    if kind not in _REQUIRED:
        hint = did_you_mean(str(kind), _REQUIRED) or f"compiled are {', '.join(_REQUIRED)}"
        raise refuse(path, "rope_type", kind, "no such scaling is compiled", hint)
    theta = _one_value(raw, scaling, "rope_theta", path, DEFAULT_THETA)
    if not _is_number(theta) or theta <= 1:
        raise refuse(path, "rope_theta", theta, "the base of the rotary embedding is a number above 1")
    rotary_dim = _rotary_dim(raw, scaling, path, head_dim)
    for key in sorted(set(scaling) - _COMMON - _REQUIRED[kind] - _OPTIONAL[kind]):
        known = _COMMON | _REQUIRED[kind] | _OPTIONAL[kind]
        raise refuse(
            path, key, scaling[key], f"not a parameter of {kind} rope scaling", did_you_mean(key, known)
        )
    for key in sorted(_REQUIRED[kind]):
        if scaling.get(key) is not None or (kind == "yarn" and key in scaling):
            continue  # YaRN derives a null factor from the two context lengths
        raise UserError(
            f"{path.name} asks for {kind} rope scaling without {key}",
            where=str(path),
            remedy=f"add {key} to rope_scaling, or set rope_scaling to null",
        )
    if kind == "default":
        return Rope(float(theta), rotary_dim)
    values = {key: scaling[key] for key in _REQUIRED[kind] | _OPTIONAL[kind] if scaling.get(key) is not None}
    if kind in ("yarn", "llama3"):
        original = raw.get("original_max_position_embeddings")  # transformers gives the outer one priority
        inner = values.get("original_max_position_embeddings", context)
        values["original_max_position_embeddings"] = inner if original is None else original
    if kind == "yarn" and values.get("factor") is None:
        values["factor"] = context / values["original_max_position_embeddings"]
    for key, value in values.items():
        if key == "truncate" and isinstance(value, bool):
            continue
        if not _is_number(value) or value <= 0:
            raise refuse(path, key, value, f"{kind} rope scaling needs a number above 0")
    if values["factor"] < 1:
        raise refuse(path, "factor", values["factor"], "rope scaling stretches the context: at least 1")
    return Rope(float(theta), rotary_dim, tuple(sorted({**values, "rope_type": kind}.items())))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scaling_dict(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    given = {key: raw[key] for key in ("rope_parameters", "rope_scaling") if raw.get(key)}
    for key, value in given.items():
        if not isinstance(value, dict):
            raise refuse(path, key, value, "expected an object or null")
        if value and all(isinstance(item, dict) for item in value.values()):
            raise refuse(
                path, key, value, "one rotary embedding for every layer is compiled, not one per layer type"
            )
    if len(given) == 2 and given["rope_parameters"] != given["rope_scaling"]:
        remedy = "keep the one that is meant"
        raise refuse(path, "rope_scaling", raw["rope_scaling"], "rope_parameters says something else", remedy)
    result: dict[str, Any] = dict(next(iter(given.values()), {}))
    return result


def _one_value(raw: dict[str, Any], scaling: dict[str, Any], key: str, path: Path, default: Any) -> Any:
    outer, inner = raw.get(key), scaling.get(key)
    if outer is not None and inner is not None and outer != inner:
        raise refuse(path, key, outer, f"rope_parameters says {inner!r}", "keep the one that is meant")
    value = inner if inner is not None else outer
    return default if value is None else value


def _rotary_dim(raw: dict[str, Any], scaling: dict[str, Any], path: Path, head_dim: int) -> int:
    factor = _one_value(raw, scaling, "partial_rotary_factor", path, None)
    given = raw.get("rotary_dim")
    if factor is not None and (not _is_number(factor) or not 0 < factor <= 1):
        raise refuse(
            path, "partial_rotary_factor", factor, "the rotated part of a head is above 0 and at most 1"
        )
    rotary_dim = given if given is not None else head_dim if factor is None else int(head_dim * factor)
    if isinstance(rotary_dim, bool) or not isinstance(rotary_dim, int):
        raise refuse(path, "rotary_dim", rotary_dim, "expected a whole number")
    if factor is not None and int(head_dim * factor) != rotary_dim:
        why = f"partial_rotary_factor {factor} of head_dim {head_dim} is {int(head_dim * factor)}"
        raise refuse(path, "rotary_dim", rotary_dim, why, "keep the one that is meant")
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        why = f"the rotated width is even and at most head_dim {head_dim}"
        raise refuse(path, "rotary_dim", rotary_dim, why)
    return rotary_dim
